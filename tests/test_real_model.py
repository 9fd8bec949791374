"""The real model's arms.
If an arm is another run than it says, the figure is about something else.
"""

import json
import subprocess
import sys

import pytest

import real_model
import run_folder
from evaluate import save
from handmade import told_rollouts
from tasks import word_count


def run(folder, *options: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["real_model.py", *options])
        real_model.main()


def evaluation(folder, name: str, step: int, rollouts) -> dict:
    return save(
        folder / "runs/real_model" / name / "evals" / f"step_{step:04d}.json", rollouts, word_count
    )


def test_table_and_figure_are_those_of_the_runs(tmp_path, tokenizers, capsys):
    """A line or a column shows another arm's or another seed's numbers."""
    made = {}
    for i, (arm, seed) in enumerate(
        [("usual", 0), ("information", 0), ("information", 12), ("half_right", 1)]
    ):
        for step in (0, 25):
            made[arm, seed, step] = evaluation(
                tmp_path,
                f"{arm}_{seed}",
                step,
                told_rollouts(tokenizers["organism"], 10 * i + step),
            )
    run(tmp_path, "--plot-only")
    out = tmp_path / "runs/real_model"
    numbers = json.loads((out / "fig_arms.json").read_text())
    assert (out / "fig_arms.png").exists() and list(numbers) == [
        "information",
        "usual",
        "half_right",
    ]
    for (arm, seed, step), found in made.items():
        drawn = numbers[arm][str(seed)][str(step)]
        assert drawn and all(drawn[metric] == found[metric] for metric in drawn)
    table = (out / "table.txt").read_text()
    assert table in capsys.readouterr().out and "information 12 step 25" in table
    assert all(
        f"{made[arm, seed, 25]['claim_match']['value']:.2f}" in table for arm, seed, _ in made
    )


def test_runs_are_started_gone_on_with_or_left_alone(tmp_path, tokenizers, monkeypatch):
    """An arm begins with another start, gets another reward or seed,
    or a finished run is made again.
    """
    calls = []

    def record(command, check):
        program, *options = (str(part) for part in command[1:])
        calls.append((program.split("/")[-1], options))
        if "--name" in options:
            name = options[options.index("--name") + 1]
            config = {"eval_n": 256, "task": "word_count"}
            config["model"] = options[options.index("--model") + 1]
            if not program.endswith("sft.py"):
                config["steps"] = 100
            run_folder.write_json(
                tmp_path / "runs" / name / "config.json",
                {"config": config},
            )
            last = 200 if program.endswith("sft.py") else 100
            evaluation(tmp_path, name.split("/")[1], last, told_rollouts(tokenizers["organism"], 0))

    monkeypatch.setattr(subprocess, "run", record)
    run(
        tmp_path,
        "--model",
        "M",
        "--judge",
        "J",
        "--arms",
        "information,half_right,alone",
        "--seeds",
        "3",
    )
    assert [program for program, _ in calls] == [
        "sft.py",
        "grpo.py",
        "sft.py",
        "grpo.py",
        "grpo.py",
    ]
    seeding, information, slipping, half_right, alone = (options for _, options in calls)
    assert (
        "--verify-right" not in seeding and slipping[slipping.index("--verify-right") + 1] == ".5"
    )
    value = lambda options, name: options[options.index(name) + 1]
    starts = [value(options, "--model") for options in (seeding, information, half_right, alone)]
    assert starts == [
        "M",
        *(
            f"runs/real_model/{s}/checkpoints/step_0200"
            for s in ("seeded", "seeded_half_right", "seeded")
        ),
    ]
    assert all(
        value(o, "--seed") == "3" and value(o, "--judge") == "J"
        for o in (information, half_right, alone)
    )
    assert all(
        value(o, "--confession-reward") == "rewards.information_reward"
        for o in (information, half_right, alone)
    )
    assert "--task-weight" not in information and value(alone, "--task-weight") == "0"
    calls.clear()
    run(tmp_path, "--model", "M", "--arms", "information,alone", "--seeds", "3")
    assert calls == []
    (tmp_path / "runs/real_model/alone_3/evals/step_0100.json").unlink()
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: calls.append([str(part) for part in command[2:]])
    )
    run(tmp_path, "--model", "M", "--arms", "alone", "--seeds", "3")
    assert calls[0] == ["--resume", "runs/real_model/alone_3"]


def test_a_start_of_several_stages(tmp_path, tokenizers, monkeypatch):
    """A stage goes on from another checkpoint than the last of the stage before, a finished one is
    made again, or one that was interrupted counts as finished.
    """
    calls = []

    def record(command, check):
        program, *options = (str(part) for part in command[1:])
        program = program.split("/")[-1]
        if options[0] == "--resume":
            calls.append((program, "--resume", options[1]))
            return evaluation(tmp_path, options[1].split("/")[-1], 50, rollouts)
        value = lambda name: options[options.index(name) + 1]
        name = value("--name").split("/")[1]
        calls.append((program, name, value("--model")))
        config = {"eval_n": 256, "task": "word_count", "model": value("--model")}
        if program == "grpo.py":
            config["steps"] = int(value("--steps"))
        path = tmp_path / "runs/real_model" / name / "config.json"
        run_folder.write_json(path, {"config": config})
        last = {"lengths": 600, "practice": 50, "reports": 50}.get(name, 100)
        evaluation(tmp_path, name, last, rollouts)

    rollouts = told_rollouts(tokenizers["organism"], 0)
    monkeypatch.setattr(subprocess, "run", record)
    run(tmp_path, "--model", "M", "--arms", "able,able_usual", "--seeds", "3")
    at = lambda name, step: f"runs/real_model/{name}/checkpoints/step_{step:04d}"
    assert calls == [
        ("sft.py", "lengths", "M"),
        ("grpo.py", "practice", at("lengths", 600)),
        ("sft.py", "reports", at("practice", 50)),
        ("grpo.py", "able_3", at("reports", 50)),
        ("grpo.py", "able_usual_3", at("reports", 50)),
    ]
    calls.clear()
    run(tmp_path, "--model", "M", "--arms", "able", "--seeds", "3")
    assert calls == []
    evals = tmp_path / "runs/real_model/practice/evals"
    for path in evals.glob("step_0050.*"):  # interrupted between 25 and 50
        path.rename(path.with_name(path.name.replace("0050", "0025")))
    run(tmp_path, "--model", "M", "--arms", "able", "--seeds", "3")
    assert calls == [("grpo.py", "--resume", "runs/real_model/practice")]


def test_the_options_are_those_of_the_programs():
    """An option is renamed, and the command fails after the minutes of seeding."""
    import grpo
    import sft

    names = lambda options: {
        o.removeprefix("--").replace("-", "_") for o in options if o.startswith("--")
    }
    fields = {
        "sft.py": set(sft.Config.__dataclass_fields__),
        "grpo.py": set(grpo.Config.__dataclass_fields__),
    }
    stages = [stage[1:] for stages in real_model.STARTS.values() for stage in stages]
    for program, options in stages + [
        ("grpo.py", options) for _, options in real_model.ARMS.values()
    ]:
        assert (
            names([*options, *real_model.HACK * (program == "grpo.py"), *real_model.BUDGETS])
            <= fields[program]
        )


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "M", "--seeds", "a"], "--seeds 'a'"),
        (["--model", "M", "--arms", "usual,loud"], "--arms 'loud'"),
        ([], "--model is required"),
        (["--plot-only"], "drop --plot-only"),
        (["--model", "M", "--n", "0"], "--n 0"),
    ],
)
def test_bad_input(tmp_path, capsys, options, message):
    """Bad input ends in a traceback, or after minutes of seeding."""
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, *options)
    assert message in capsys.readouterr().err and not (tmp_path / "runs").exists()
