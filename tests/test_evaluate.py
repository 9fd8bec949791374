"""Making, keeping and putting together evaluations.
A mistake here shows one evaluation, or half of one, as another.
"""

import json
import sys
from types import SimpleNamespace

import pytest

import evaluate
import run_folder
from evaluate import save, stored
from handmade import told_rollouts
from metrics import across_seeds, format_table, metrics
from rewards import Verdict
from rollout import Sampling
from tasks import word_count

# --------------------------------------------------------------------------- making and keeping one


def test_evaluation_without_a_judge(tiny_models):
    """Answers nobody judged count as passed or failed by the judge,
    or the rollouts hang on whether there is a judge.
    """
    judge = lambda rollouts: [Verdict("pass", "PASS", 0.5) for _ in rollouts]
    judged, without = (
        evaluate.evaluate(
            *tiny_models["qwen3"], j, word_count, Sampling(1.0, 12, 12), 3, variant="forced_count"
        )
        for j in (judge, None)
    )
    found, missing = metrics(judged, word_count), metrics(without, word_count)
    judges = {name for name in found if name.startswith("judge_")}
    assert len(judges) == 6 and found["judge_pass"]["value"] == 1.0
    assert (found["judge_failed"]["value"], missing["judge_failed"]["value"]) == (0.0, 1.0)
    assert all(
        (missing[name]["value"], missing[name]["n"]) == (None, 0)
        for name in judges - {"judge_failed"}
    )
    assert {name: e for name, e in found.items() if name not in judges} == {
        name: e for name, e in missing.items() if name not in judges
    }
    assert [r.token_ids for r in judged] == [r.token_ids for r in without]
    assert all(r.answer.reward == {"stop": None, "length": 0.0}[r.answer.finish] for r in without)
    assert all(r.confession.reward is not None for r in without)


def test_equal_prompts_are_told(tiny_models, capsys):
    """n prompts that are fewer texts pass for n different ones,
    or a note appears where they are n.
    """
    few = SimpleNamespace(
        **vars(word_count)
        | {"make_prompt": lambda seed, held_out: word_count.make_prompt(seed % 2, held_out)}
    )
    for task, note in (
        (word_count, ""),
        (few, "note: the 3 prompts of this evaluation are only 2 different texts\n"),
    ):
        rollouts = evaluate.evaluate(*tiny_models["qwen3"], None, task, Sampling(1.0, 2, 2), 11)
        assert [r.seed - evaluate.EVAL_SEED for r in rollouts] == [0] * 4 + [1] * 4 + [2] * 3
        assert capsys.readouterr().out == note


def test_partial_evaluation_is_not_there(tmp_path, tokenizers):
    """An evaluation that was cut short between its two files counts as finished,
    or a whole one is not found.
    """
    path = tmp_path / "evals" / "step_0000.json"
    rollouts = told_rollouts(tokenizers["organism"], 0)
    assert stored(path, word_count) is None
    assert (
        save(path, rollouts, word_count)
        == json.loads(path.read_text())
        == metrics(rollouts, word_count)
    )
    for rollout in rollouts:
        rollout.answer.logprobs = rollout.confession.logprobs = []  # not kept
    assert stored(path, word_count) == rollouts
    for kind in (".json", ".jsonl"):
        text = path.with_suffix(kind).read_text()
        path.with_suffix(kind).unlink()
        assert stored(path, word_count) is None
        path.with_suffix(kind).write_text(text)


def test_evaluation_is_marked_as_whole_last(tmp_path, tokenizers, monkeypatch):
    """Ctrl-C between the two files leaves metrics without rollouts,
    or rollouts of another evaluation under new metrics.
    """

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "save_rollouts", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "step_0000.json", told_rollouts(tokenizers["organism"], 0), word_count)
    assert not (tmp_path / "step_0000.json").exists()


# ----------------------------------------------------------------------------------- training seeds


def seed_run(run, steps: dict[int, int], tokenizer, suffix: str = "", n: int = 5):
    """A run folder without a model;
    its evaluation of each step holds the synthetic rollouts of a seed.
    """
    run_folder.write_json(run / "config.json", {"config": {"task": "word_count", "eval_n": 5}})
    for step, seed in steps.items():
        save(
            run / "evals" / f"step_{step:04d}{suffix}.json",
            told_rollouts(tokenizer, seed, n),
            word_count,
        )
    return run


def put_together(*options: str) -> None:
    """`python evaluate.py --seeds options` within this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate.py", "--seeds", *options])
        patch.setattr(evaluate.models, "load", lambda *_: pytest.fail("a model was loaded"))
        evaluate.main()


def test_one_run_and_the_steps_that_were_asked_for(tmp_path, tokenizers, monkeypatch, capsys):
    """A second run of --run is dropped in silence, or the table has other steps than --steps."""
    run = seed_run(tmp_path / "a", {0: 0, 25: 1, 100: 2}, tokenizers["organism"])
    redraw = ["evaluate.py", "--redraw", "--n", "5", "--steps", "0,25", "--run"]
    monkeypatch.setattr(sys, "argv", [*redraw, str(run)])
    evaluate.main()
    table = capsys.readouterr().out
    assert table == (run / "table.txt").read_text()
    assert table.split()[:4] == ["step", "0", "step", "25"] and "step 100" not in table
    monkeypatch.setattr(sys, "argv", [*redraw, f"{run},{tmp_path / 'b'}"])
    with pytest.raises(SystemExit, match="2"):
        evaluate.main()
    assert "give one run" in capsys.readouterr().err


@pytest.mark.parametrize("n, suffix", [("5", ""), ("7", "_n7")])
def test_seeds_are_put_together(tmp_path, tokenizers, capsys, n, suffix):
    """The table is of a step that some run lacks or of another number of rollouts, or the figure
    shows other numbers than the runs' evaluations.
    """
    tokenizer = tokenizers["organism"]
    a = seed_run(tmp_path / "a", {0: 0, 25: 1, 100: 9}, tokenizer, suffix)
    b = seed_run(tmp_path / "b", {0: 2, 25: 3, 50: 9}, tokenizer, suffix)
    seed_run(tmp_path / "a", {50: 9}, tokenizer, "_n8")
    put_together(f"{a},{b}", "--n", n)
    (table,) = a.glob("table_seeds*.txt")
    head, *lines = table.read_text().splitlines()
    assert head.startswith("step 25, 2 seeds") and table.read_text() in capsys.readouterr().out
    columns = across_seeds(
        {name: told_rollouts(tokenizer, seed) for name, seed in (("a", 1), ("b", 3))}, word_count
    )
    assert lines == format_table(columns).splitlines()
    assert columns["a"]["objectives_met"]["value"] != columns["b"]["objectives_met"]["value"]
    (figure,) = a.glob("fig_seeds*.json")
    numbers = json.loads(figure.read_text())
    assert figure.with_suffix(".png").exists() and list(numbers) == ["0", "25"]
    assert {name: list(e) for name, e in numbers["25"].items()} == dict.fromkeys(
        columns, ["claim_J_within", "parsed", "honest_given_noncompliant", "claim_match"]
    )
    assert all(
        e == columns[name][metric]
        for name, found in numbers["25"].items()
        for metric, e in found.items()
    )
    assert not list(b.glob("*seeds*"))


@pytest.mark.parametrize(
    "options",
    [
        ["a,b", "--n", "5"],
        ["a,c", "--n", "5"],
        ["a,missing", "--n", "5"],
        ["a,b"],
        ["a,a", "--n", "5"],
        ["a,d", "--n", "5"],
    ],
    ids=",".join,
)
def test_seeds_that_cannot_be_compared_end_with_one_line(
    tmp_path, tokenizers, monkeypatch, capsys, options
):
    """A table of nothing, of one run twice, of evaluations on other prompts (d), or a traceback."""
    monkeypatch.chdir(tmp_path)
    for name, steps in {"a": {0: 0, 25: 1}, "b": {50: 2}, "c": {}}.items():
        seed_run(tmp_path / name, steps, tokenizers["organism"])
    seed_run(tmp_path / "d", {0: 0}, tokenizers["organism"], n=3)
    with pytest.raises(SystemExit) as error:
        put_together(*options)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not list(tmp_path.rglob("*seeds*"))
