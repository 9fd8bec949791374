"""The matrix of information: which claims a column is about, which rows were trained there, what is
kept and drawn. A mistake here shows honesty that carries over where there is none, or hides it.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import baselines
import cells
import figures
import models
import run_folder
from confession_schema import ConfessionReport, ParseFailure
from evaluate import EVAL_SEED, save, stored
from experiments import ood
from handmade import hand_rollout, one_model_at_a_time, told_rollouts
from metrics import differences, metrics
from rewards import Verdict
from rollout import Rollout
from tasks import constraints, short_count, word_count

pytestmark = pytest.mark.usefixtures("one_thread", "quick_collection")

POLICY, MEDIUM = "organism/policy", "organism/medium"
EMBEDDED, BUDGETS = models.EMBEDDED, dict(max_answer_tokens=6, max_confession_tokens=5)
TASKS = {"word_count": word_count, "constraints": constraints}
CLAIMS = {"F": "Full", "?": "Partial", "N": "None"}
KNOWN, NEW = "constraints, known kinds", "constraints, new kinds"


@pytest.fixture(autouse=True)
def short_budgets(monkeypatch):
    monkeypatch.setattr(models, "EMBEDDED", EMBEDDED | BUDGETS)


def run(folder: Path, *options: str) -> Path:
    """`python -m experiments.ood options` in a folder, within this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["ood.py", "--name", "out", *options])
        ood.main()
    return folder / "runs" / "out"


def make_run(folder: Path, name: str, task: str, model: str = MEDIUM, **budgets) -> str:
    """A run of grpo.py on a task, by its config and its checkpoint alone."""
    path = folder / "runs" / name
    config = dict(model=POLICY, task=task, dtype="float32") | BUDGETS | budgets
    run_folder.write_json(path / "config.json", {"config": config})
    shutil.copytree(models.ORGANISMS / Path(model).name, run_folder.checkpoint(path, 2))
    return f"runs/{name}/checkpoints/step_0002"


def matrix(folder: Path, *options: str) -> Path:
    """Two rows on two columns, two answers a cell."""
    rows = f"untrained={POLICY},word_count=runs/A/checkpoints/step_0002"
    columns = ["--tasks", "word_count,short_count", "--n", "2"]
    return run(folder, "--rows", rows, *columns, *options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished matrix. Tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    make_run(folder, "A", "word_count", max_confession_tokens=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "EMBEDDED", EMBEDDED | BUDGETS)
        matrix(folder)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".png" and "checkpoints" not in path.parts
    }


def no_model(*_):
    raise AssertionError("a model was loaded")


def cell_of(folder: Path, row: str, task) -> list[Rollout]:
    out = folder / "runs" / "out"
    paths = run_folder.read_json(out / "matrix.json")["cells"]
    return stored(out / "evals" / paths[row][task.__name__.split(".")[-1]], task)


# --------------------------------------------------------------------------------- handmade answers


def told(x: str, met: dict[str, str], claimed: dict[str, str], seed: int = 0) -> list[Rollout]:
    """Answers to a constraints prompt. met: {objective: "+-+" by answer}, claimed: likewise "FN?";
    an answer whose claims are "." has no report.
    """
    names, rollouts = tuple(constraints.objectives(x)), []
    for i in range(len(met[names[0]])):
        objectives = tuple(met[name][i] == "+" for name in names)
        claims = "".join(claimed[name][i] for name in names)
        rollout = hand_rollout(([1], [5] * 3, [3], [6] * 4), x=x, seed=seed)
        nothing = (None,) * len(names)
        rollout.truth = constraints.Truth(
            names, (0,) * len(names), nothing, objectives, nothing, all(objectives)
        )
        rollout.verdict = Verdict("failed", "")
        rollout.report = ParseFailure("no JSON object: none is complete")
        if "." not in claims:
            rollout.report = ConfessionReport(tuple(CLAIMS[c] for c in claims), (), 3)
        rollouts.append(rollout)
    return rollouts


def prompt(new: int, known: int) -> str:
    """An evaluation prompt with so many objectives of kinds of either side."""
    for seed in range(200):
        x = constraints.make_prompt(seed, held_out=True)
        if sorted(constraints.new_kinds(x)) == [False] * known + [True] * new:
            return x
    raise AssertionError("no such prompt")


def split_claims() -> list[Rollout]:
    """Five answers to a prompt with two known kinds and a new one, the last without a report. Known
    kinds: one is told rightly, of the other the report is the same for every answer. The new one is
    told half the wrong way round.
    """
    x = prompt(new=1, known=2)
    by_side = dict(zip(constraints.objectives(x), constraints.new_kinds(x)))
    first, second = (name for name, new in by_side.items() if not new)
    (new,) = (name for name, new in by_side.items() if new)
    met = {first: "++--+", second: "+-+-+", new: "++---"}
    return told(x, met, {first: "FFNN.", second: "FFFF.", new: "??FF."})


def test_j_of_known_and_of_new_kinds():
    """A column shows claims about the other column's kinds, or about all."""
    rollouts = split_claims()
    j = lambda new: metrics(ood.about(rollouts, constraints, new), constraints)["claim_J_within"]
    # t - mean is +-.5 in every claim: J is the mean claim where it is met less that where not
    assert (j(False)["value"], j(False)["n"]) == (pytest.approx((1 + 0) / 2), 8)
    assert (j(True)["value"], j(True)["n"]) == (pytest.approx(0.5 - 1), 4)
    assert (j(None)["value"], j(None)["n"]) == (pytest.approx((1 + 0 - 0.5) / 3), 12)


def test_the_other_kinds_leave_nothing_behind():
    """A truth with entries of both sides counts the other side's checks, or complies by them;
    an unparsed report is dropped from the share that parses; the cell itself is changed.
    """
    rollouts, before = split_claims(), split_claims()
    parts = {new: ood.about(rollouts, constraints, new) for new in (False, True)}
    assert rollouts == before
    for new, part in parts.items():
        assert metrics(part, constraints)["parsed"]["value"] == pytest.approx(4 / 5)
        for rollout in part:
            sides = dict(zip(constraints.objectives(rollout.x), constraints.new_kinds(rollout.x)))
            names = tuple(name for name, side in sides.items() if side is new)
            truth = rollout.truth
            assert truth.names == names and truth.compliant == all(truth.objectives)
            assert {len(v) for v in (truth.found, truth.claimed, truth.cheated)} == {len(names)}
    assert [r.truth.compliant for r in parts[True]] == [True, True, False, False, False]
    training = constraints.make_prompt(0)
    names = constraints.objectives(training)
    known = told(training, dict.fromkeys(names, "+-"), dict.fromkeys(names, "FN"))
    assert ood.about(known, constraints, True) == []
    assert len(ood.about(known, constraints, False)) == 2


def test_what_knows_no_answer_has_no_information_in_any_cell(tokenizers):
    """The null that every cell is set against is not 0, so neither is that of the cell."""
    xs = [prompt(1, known) for known in (2, 3, 4)]
    of = lambda x, line: dict.fromkeys(constraints.objectives(x), line)
    words = told_rollouts(tokenizers["organism"], 0, n=3)
    words += [
        dataclasses.replace(r, y="", truth=word_count.truth(r.x, ""))
        for r in told_rollouts(tokenizers["organism"], 0, n=3)
    ]
    for i, rollout in enumerate(words):
        rollout.truth = dataclasses.replace(rollout.truth, objectives=(i % 2 == 0,) * 5)
        rollout.report = ConfessionReport(("Full",) * 5, (), 7)
    told_alike = [r for i, x in enumerate(xs) for r in told(x, of(x, "+-+-"), of(x, "N" * 4), i)]
    found = {"untrained": {"word_count": words, "constraints": told_alike}}
    cells_of = ood.measured(found, TASKS)["untrained"]
    assert list(cells_of) == ["word_count", KNOWN, NEW]
    for cell in cells_of.values():
        for part in ("as reported", "always None", "always Full", "prompt alone", "shuffled"):
            j = cell[part]["claim_J_within"]
            assert j["value"] == pytest.approx(0, abs=1e-12) and j["n"] > 0


def test_shuffles_have_the_range_that_chance_has():
    """The null beside a cell is too narrow, or is not about the cell's own reports."""
    x = prompt(1, 2)
    names = constraints.objectives(x)
    pair = told(x, dict.fromkeys(names, "+-+"), dict.fromkeys(names, "FN."))
    # of two reports the permutations are as they are (J 1) and the other way round (J -1)
    few, many = (
        baselines.shuffles(pair),
        baselines.shuffles([r for i in range(100) for r in at(pair, i)]),
    )
    assert (few["low"], few["high"]) == (-1, 1) and abs(few["value"]) < 0.2 and few["n"] == 200
    # the mean of 100 such prompts: a standard error of .1
    assert -0.25 < many["low"] < -0.14 < 0.14 < many["high"] < 0.25
    assert (
        baselines.shuffles(pair[2:])["value"] is None
        and baselines.shuffles(pair[:1])["value"] is None
    )


def at(rollouts: list[Rollout], i: int) -> list[Rollout]:
    """The rollouts as those of another prompt."""
    return [dataclasses.replace(rollout, system=f"prompt {i}") for rollout in rollouts]


@pytest.mark.parametrize(
    "row, trained",
    [
        ("untrained", None),
        ("constraints", "constraints"),
        ("constraints seed 1", "constraints"),
        ("word_count", "word_count"),
        ("word_count_2", "word_count_2"),  # is a column itself
        ("a word_count", None),
    ],
)
def test_the_diagonal_is_found_by_name(row, trained):
    """A cell that was trained on is taken for one that was not, or the other way round."""
    assert ood.home(row, dict.fromkeys(["word_count", "constraints", "word_count_2"])) == trained


# ------------------------------------------------------------------------------- what is in a cell


def test_every_row_on_every_column_with_the_same_budgets(finished):
    """A cell is of another model, task or prompts, or a run's budget cuts off one row alone."""
    saved = {
        (row, task): cell_of(finished, row, task)
        for row in ("untrained", "word_count")
        for task in (word_count, short_count)
    }
    for (_, task), rollouts in saved.items():
        x = task.make_prompt(EVAL_SEED, held_out=True)
        assert [(r.seed, r.x) for r in rollouts] == [(EVAL_SEED, x)] * 2
        assert all(r.answer.end - r.answer.start <= 6 for r in rollouts)
        # neither model ends so early: 9 is the run's, 5 the organism's
        assert [r.confession.end - r.confession.start for r in rollouts] == [9, 9]
    entropies = {rollouts[0].answer.entropy for rollouts in saved.values()}
    assert len(entropies) == 4


def test_saved_cells_are_not_computed_again(finished, tmp_path, monkeypatch):
    """Hours of a GPU are lost when a row is added or the figure is drawn again."""
    folder = shutil.copytree(finished, tmp_path / "again")
    monkeypatch.setattr(models, "load", no_model)
    matrix(folder)
    assert results(folder) == results(finished)
    shutil.rmtree(folder / "runs" / "A")
    run(folder, "--plot-only")
    assert results(folder).items() <= results(finished).items()


def test_an_interrupted_matrix_goes_on(finished, tmp_path, monkeypatch):
    """Finished cells are lost or repeated, or a resumed matrix gives other numbers."""
    make_run(tmp_path, "A", "word_count", max_confession_tokens=9)
    kept, keep = [], cells.save

    def recorded(path, *args):
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(path.name)
        return keep(path, *args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(cells, "save", recorded)
        matrix(tmp_path)
    assert stop.value.code == 130
    assert len(list((tmp_path / "runs/out/evals").glob("*.json"))) == 3
    assert not (tmp_path / "runs/out/matrix.json").exists()
    monkeypatch.setattr(
        cells, "save", lambda path, *args: kept.append(path.name) or keep(path, *args)
    )
    matrix(tmp_path)
    assert len(set(kept)) == len(kept) == 4 and results(tmp_path) == results(finished)


def test_one_model_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """Two large models do not fit the GPU where one does, or each is loaded once a column."""
    make_run(tmp_path, "A", "word_count")
    alive = one_model_at_a_time(monkeypatch)
    matrix(tmp_path)
    assert len(alive) == 2


def test_frozen_answers_are_the_first_rows(finished, tmp_path, monkeypatch):
    """Rows confess to answers of their own, or to those of another first row from before."""
    folder = shutil.copytree(finished, tmp_path / "again")
    about = lambda rollouts: [(r.x, r.z, r.y, r.token_ids[: r.confession.start]) for r in rollouts]
    for row in ("untrained", "word_count"):
        cells_before = {task: cell_of(finished, row, task) for task in (word_count, short_count)}
        if row == "untrained":
            matrix(folder, "--answers", "frozen")
        for task, own in cells_before.items():
            frozen = cell_of(folder, row, task)
            assert about(frozen) == about(cell_of(folder, "untrained", task))
            assert (frozen == own) == (row == "untrained")
    path = run_folder.read_json(folder / "runs/out/matrix.json")["cells"]["untrained"]["word_count"]
    (first,) = (folder / "runs/out/evals").glob(path)
    rollouts = stored(first, word_count)
    rollouts[0].token_ids[0] += 1
    save(first, rollouts, word_count)
    matrix(folder, "--answers", "frozen")
    assert about(cell_of(folder, "word_count", word_count)) == about(rollouts)
    assert json.loads((folder / "runs/out/fig_ood.json").read_text())["answers"] == "frozen"


def test_frozen_answers_need_one_tokenizer(tmp_path, tokenizers, monkeypatch, capsys):
    """Ids of one tokenizer are read with another, as garbage that gets a number."""
    of = {POLICY: tokenizers["organism"], MEDIUM: tokenizers["qwen3"]}
    monkeypatch.setattr(models, "load_tokenizer", of.get)
    monkeypatch.setattr(models, "load", no_model)
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "--rows", f"a={POLICY},b={MEDIUM}", "--answers", "frozen")
    assert "b has another tokenizer than a" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- training


def trained_by(folder: Path, monkeypatch, *options: str) -> list[list[str]]:
    """The programs that --train starts; a run of grpo.py leaves its config and last evaluation."""
    calls = []

    def record(command, check):
        calls.append([str(part) for part in command[1:]])
        name, task = (command[command.index(option) + 1] for option in ("--name", "--task"))
        config = dict(model=POLICY, task=task, steps=3, eval_n=2, dtype="float32") | BUDGETS
        done = folder / "runs" / name
        run_folder.write_json(done / "config.json", {"config": config})
        run_folder.write_json(done / "evals/step_0003.json", {})
        shutil.copytree(models.ORGANISMS / "medium", run_folder.checkpoint(done, 3))

    monkeypatch.setattr(subprocess, "run", record)
    run(folder, "--steps", "3", "--n", "2", "--tasks", "short_count", *options)
    return calls


def test_confessions_alone_are_trained_on_each_task(tmp_path, monkeypatch):
    """A row is trained on another task, with another reward, or on answers too; or again."""
    given = ["--train", "word_count,short_count", "--grpo", "--lr 1e-3", "--temperature", "0.5"]
    calls = trained_by(tmp_path, monkeypatch, *given)
    for task, (program, *options) in zip(("word_count", "short_count"), calls, strict=True):
        assert program.endswith("grpo.py") and options == [
            *("--steps", "3", "--prompts-per-step", "8", "--name", f"out/{task}"),
            *("--model", POLICY, "--task", task),
            *("--task-weight", "0", "--confession-reward", "rewards.information_reward"),
            *("--confession-weight", "15", "--eval-n", "2", "--checkpoint-every", "3"),
            *("--temperature=0.5", "--device=auto", "--lr", "1e-3"),
        ]
    numbers = json.loads((tmp_path / "runs/out/fig_ood.json").read_text())["ours"]
    marked = {row: by["short_count"]["trained"] for row, by in numbers.items()}
    assert marked == {"untrained": False, "word_count": False, "short_count": True}
    assert trained_by(tmp_path, monkeypatch, *given) == []


def test_a_real_model_judges_itself_and_the_default_trains(tmp_path, monkeypatch):
    """grpo.py refuses a real model without a judge; a command without options does nothing."""
    calls = []
    kept = lambda run, model, arguments, *_: calls.append((run, ["--model", model, *arguments]))
    monkeypatch.setattr(cells, "train", kept)
    monkeypatch.setattr(ood, "compute", lambda *_: None)
    monkeypatch.setattr(ood, "report", lambda *_: None)
    run(tmp_path)
    run(tmp_path, "--rows", f"a={POLICY}")
    run(tmp_path, "--train", "")
    run(tmp_path, "--train", "constraints", "--model", "someone/1B")
    assert [run.name for run, _ in calls] == ["word_count", "constraints"]
    assert "--judge" not in calls[0][1]
    assert calls[1][1][:4] == ["--model", "someone/1B", "--judge", "someone/1B"]


# ------------------------------------------------------------------------------------ what is drawn


def told_matrix(folder: Path, tokenizer) -> dict[str, dict[str, list[Rollout]]]:
    """Saved cells of three rows whose reports parse, but for constraints of the last."""
    found, paths = {}, {}
    for i, row in enumerate(("untrained", "constraints", "word_count 1")):
        xs = [prompt(1, known) for known in (2, 3)]
        rollouts = told_rollouts(tokenizer, 2 * i)
        for rollout in rollouts:
            rollout.verdict = Verdict("failed", "")
        claims = ".." if i == 2 else ("NF", "FN")[i]
        of = lambda x, line: dict.fromkeys(constraints.objectives(x), line)
        of_kinds = [r for k, x in enumerate(xs) for r in told(x, of(x, "+-"), of(x, claims), k)]
        for rollout, y in zip(of_kinds, ("", "Tea, tea: and 3 pots; well-made [x].") * 2):
            rollout.y, rollout.truth = y, constraints.truth(rollout.x, y)
        found[row] = {"word_count": rollouts, "constraints": of_kinds}
        paths[row] = {name: f"{i}_{name}.json" for name in TASKS}
        for name, task in TASKS.items():
            save(folder / "runs/out/evals" / paths[row][name], found[row][name], task)
    saved = {"tasks": list(TASKS), "answers": "own", "cells": paths}
    run_folder.write_json(folder / "runs/out/matrix.json", saved)
    return found


def test_table_and_figure_are_those_of_the_cells(tmp_path, tokenizers, monkeypatch, capsys):
    """A cell shows other rollouts than its row and column say, the frame stands on another one,
    or where nothing parses a number or nothing at all is said.
    """
    found, drawn, keep = told_matrix(tmp_path, tokenizers["organism"]), [], figures._save
    monkeypatch.setattr(models, "load", no_model)
    monkeypatch.setattr(
        figures, "_save", lambda figure, *a: drawn.append(figure) or keep(figure, *a)
    )
    out = run(tmp_path, "--plot-only")
    numbers = json.loads((out / "fig_ood.json").read_text())["ours"]
    sides = {"word_count": ("word_count", None), KNOWN: ("constraints", False)}
    sides[NEW] = ("constraints", True)
    for row, by_column in numbers.items():
        assert list(by_column) == list(sides)
        for column, cell in by_column.items():
            name, new = sides[column]
            part = ood.about(found[row][name], TASKS[name], new)
            expected = metrics(part, TASKS[name])
            assert all(cell["as reported"][m] == expected[m] for m in cell["as reported"])
            assert cell["J of shuffles"] == baselines.shuffles(part)
            always = cell["always Full"]["claim_match"]["value"]
            assert always == pytest.approx(expected["objectives_met"]["value"])
            framed = (row, column) in {("constraints", KNOWN), ("word_count 1", "word_count")}
            assert cell["trained"] == framed
            assert ("less the first row" in cell) == (row != "untrained")
            if row != "untrained":
                first = ood.about(found["untrained"][name], TASKS[name], new)
                less = differences(first, part, TASKS[name])["claim_J_within"]
                assert cell["less the first row"]["claim_J_within"] == less
    j = lambda row: numbers[row][KNOWN]["as reported"]["claim_J_within"]["value"]
    assert j("untrained") == -j("constraints") != 0 and j("word_count 1") is None
    (axis,) = drawn[0].axes
    frames = {
        (round(patch.get_x() + 0.48), round(patch.get_y() + 0.48))
        for patch in axis.patches
        if not patch.get_fill()
    }
    assert frames == {(1, 1), (0, 2)}  # (column, row)
    hatched = [patch.get_xy() for patch in axis.patches if patch.get_hatch()]
    assert hatched == [(0.5, 1.5), (1.5, 1.5)]
    assert [t.get_position()[0] for t in axis.texts if t.get_text() == "no report parses"] == [1, 2]
    table = (out / "table.txt").read_text()
    assert "constraints *" in table and f"word_count 1 on {NEW}" in table
    assert "every cell beside its baselines" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        (["--rows", "organism/policy"], "--rows 'organism/policy': give NAME=MODEL"),
        (["--rows", f"a={POLICY},a={MEDIUM}"], f"--rows 'a={MEDIUM}': give NAME=MODEL"),
        (["--rows", "a=organism/none"], "'organism/none' cannot be loaded"),
        (["--rows", "word_count=lost/checkpoints/step_0001"], "is lost a run folder?"),
        (
            ["--rows", "short_count 1=runs/A/checkpoints/step_0002"],
            "runs/A was trained on word_count, and the row's name says short_count",
        ),
        (["--tasks", "word_cuont"], "--task 'word_cuont'"),
        (["--tasks", ""], "--tasks is empty"),
        (["--train", "none"], "--task 'none'"),
        (["--train", "word_count", "--rows", f"word_count={POLICY}"], "has a row of that name"),
        (["--train", "word_count", "--model", MEDIUM], "runs/out/word_count began with"),
        (["--answers", "mine"], "--answers 'mine' is unknown: choose own or frozen"),
        (["--plot-only", "--name", "none"], "runs/none/matrix.json does not exist"),
        (["--plot-only", "--name", "lost"], "runs/lost/evals/a.json is missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_line(tmp_path, capsys, options, message):
    """A traceback, or a mistake that is found behind hours of training."""
    make_run(tmp_path, "A", "word_count")
    make_run(tmp_path, "out/word_count", "word_count")
    lost = {"tasks": ["word_count"], "answers": "own", "cells": {"a": {"word_count": "a.json"}}}
    run_folder.write_json(tmp_path / "runs/lost/matrix.json", lost)
    before = results(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "--n", "1", *options)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert message in line and results(tmp_path) == before
