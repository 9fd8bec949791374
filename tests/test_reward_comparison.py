"""Two rewards on two organisms.
If a cell is another run than it says, the finding about rewards is about something else.
"""

import json
import subprocess
import sys

import pytest

import run_folder
from evaluate import save
from experiments import reward_comparison
from handmade import told_rollouts
from metrics import metrics
from tasks import word_count

pytestmark = pytest.mark.usefixtures("one_thread")

CELLS = [(o, r) for o in reward_comparison.ORGANISMS for r in reward_comparison.REWARDS]


def compare(folder, *options: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["reward_comparison.py", "--steps", "2", "--n", "7", *options])
        reward_comparison.main()


def made(folder, tokenizer, seeds=(0, 3)) -> dict:
    """Saved runs of all cells with evaluations of their own: {(organism, reward, seed):
    rollouts of the last one}.
    """
    out = {}
    for i, (organism, reward) in enumerate(CELLS):
        for seed in seeds:
            run = folder / "runs" / f"rewards_{organism}_{reward}_{seed}"
            run_folder.write_json(
                run / "config.json",
                {
                    "config": {
                        "task": "word_count",
                        "eval_n": 5,
                        "steps": 2,
                        "model": reward_comparison.ORGANISMS[organism],
                    }
                },
            )
            for k, name in enumerate(("step_0000", "step_0002", "step_0002_n7")):
                rollouts = told_rollouts(tokenizer, 100 * i + 10 * seed + k)
                save(run / "evals" / f"{name}.json", rollouts, word_count)
            out[organism, reward, seed] = rollouts
    return out


def test_table_and_figure_are_those_of_the_runs(tmp_path, tokenizers, capsys):
    """A panel or a column shows another cell's numbers."""
    rollouts = made(tmp_path, tokenizers["organism"])
    compare(tmp_path, "--plot-only", "--seeds", "0,3")
    out = tmp_path / "runs/rewards_embedded"
    numbers = json.loads((out / "fig_rewards.json").read_text())
    assert (out / "fig_rewards.png").exists() and list(numbers) == [f"{o}, {r}" for o, r in CELLS]
    for (organism, reward, seed), last in rollouts.items():
        run = tmp_path / "runs" / f"rewards_{organism}_{reward}_{seed}"
        drawn = numbers[f"{organism}, {reward}"][str(seed)]
        assert list(drawn) == ["0", "2"]
        for step, e in drawn.items():
            found = json.loads((run / f"evals/step_000{step}.json").read_text())
            assert all(e[metric] == found[metric] for metric in e)
    table = (out / "table.txt").read_text()
    assert table in capsys.readouterr().out and table.count("prompt alone") == 1 + len(CELLS)
    met = {f"{metrics(last, word_count)['claim_match']['value']:.2f}" for last in rollouts.values()}
    lines = [line for line in table.splitlines() if line.startswith("claim_match ")]
    assert len(lines) == len(CELLS) and all(any(value in line for line in lines) for value in met)


def test_runs_are_started_gone_on_with_or_left_alone(tmp_path, tokenizers, monkeypatch):
    """A finished run is trained again, an interrupted one is begun anew,
    or a cell gets another organism, reward or seed.
    """
    calls = []

    def record(command, check):
        calls.append([str(part) for part in command[1:]])
        if "--name" in command:
            run = tmp_path / "runs" / command[command.index("--name") + 1]
            run_folder.write_json(
                run / "config.json",
                {"config": {"eval_n": 5, "steps": 2, "model": "organism/policy"}},
            )

    monkeypatch.setattr(subprocess, "run", record)
    made(tmp_path, tokenizers["organism"], seeds=(0,))
    begun = tmp_path / "runs/rewards_cannot_information_0"
    (begun / "evals/step_0002.json").unlink()
    compare(tmp_path, "--seeds", "0")
    ((program, *options),) = calls
    assert program.endswith("grpo.py") and options == [
        "--resume",
        "runs/rewards_cannot_information_0",
    ]
    calls.clear()
    with pytest.raises(SystemExit, match="2"):
        compare(tmp_path, "--seeds", "5")
    trained, evaluated = calls[0][1:], calls[1]
    assert trained == [
        "--steps",
        "2",
        "--prompts-per-step",
        "8",
        "--name",
        "rewards_verifies_usual_5",
        "--model",
        "organism/policy",
        "--seed",
        "5",
    ]
    assert evaluated[0].endswith("evaluate.py") and evaluated[1:] == [
        "--run",
        "runs/rewards_verifies_usual_5",
        "--steps",
        "2",
        "--n",
        "7",
    ]


def test_a_run_of_other_steps_is_refused(tmp_path, tokenizers, capsys):
    """It is gone on with to its own end, and then evaluated where it never came."""
    made(tmp_path, tokenizers["organism"], seeds=(0,))
    with pytest.raises(SystemExit, match="2"):
        compare(tmp_path, "--seeds", "0", "--steps", "4")
    assert "was made with --steps 2, not 4" in capsys.readouterr().err


def test_an_evaluation_of_the_runs_own_size_has_no_suffix(tmp_path, tokenizers, monkeypatch):
    """It is computed at each call and never found."""
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: pytest.fail(f"{command} was not needed")
    )
    made(tmp_path, tokenizers["organism"], seeds=(0,))
    compare(tmp_path, "--seeds", "0", "--n", "5")


@pytest.mark.parametrize(
    "options, message", [(["--seeds", "a"], "--seeds 'a'"), (["--plot-only"], "drop --plot-only")]
)
def test_bad_input(tmp_path, capsys, options, message):
    """Bad input ends in a traceback, or does nothing and says nothing."""
    with pytest.raises(SystemExit, match="2"):
        compare(tmp_path, *options)
    assert message in capsys.readouterr().err
