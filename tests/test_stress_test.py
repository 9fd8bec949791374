"""The stress test's grid: what it computes, keeps, resumes and draws.
The models' words do not matter here.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

import figures
import grpo
import models
import run_folder
import stress_test
from evaluate import EVAL_SEED
from handmade import published
from tasks.system_prompts import SYSTEM_PROMPTS

POLICY = str(models.ORGANISMS / "policy")
STEPS = (0, 2)
CELLS = {f"stress_{c}_step_000{step}_n2" for c in SYSTEM_PROMPTS for step in STEPS}


def stress(run: Path, *options: str) -> None:
    """`python stress_test.py --run run options` within this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stress_test.py", "--run", str(run), *options])
        stress_test.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder with two checkpoints and short token budgets. Tests only read it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    config = grpo.resolve(
        grpo.Config(model=POLICY, judge=POLICY, max_answer_tokens=16, max_confession_tokens=16)
    )
    run_folder.write_json(run / "config.json", {"config": dataclasses.asdict(config)})
    for step in STEPS:
        shutil.copytree(POLICY, run_folder.checkpoint(run, step))
    return run


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory) -> Path:
    """The same with a whole grid. Tests only read it."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("finished") / "run")
    stress(run, "--n", "2")
    return run


def results(run: Path) -> dict[str, bytes]:
    """Cells, tables and the figures' numbers."""
    kept = lambda path: "_step_" in path.name or path.name.startswith(("fig2", "table"))
    paths = (path for path in run.rglob("*") if path.is_file() and path.suffix != ".png")
    return {path.name: path.read_bytes() for path in paths if kept(path)}


def saved(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def no_model(*_):
    raise AssertionError("a model was loaded")


def count_cells(patch: pytest.MonkeyPatch, interrupt_at: int | None = None) -> list:
    """Record the systems of each evaluated cell from now on; Ctrl-C in place of one of them."""
    evaluate, seen = stress_test.evaluate, []

    def recorded(*args, systems, **condition):
        if len(seen) == interrupt_at:
            raise KeyboardInterrupt
        seen.append(systems)
        return evaluate(*args, systems=systems, **condition)

    patch.setattr(stress_test, "evaluate", recorded)
    return seen


def test_grid_leaves_every_cell_tables_and_figures(finished):
    """A cell is lost, or a figure is drawn without the numbers beside it."""
    table = {"table_stress_n2.txt", "fig2_stress.json", "fig2_stress_claims.json"}
    assert (
        set(results(finished))
        == {f"{cell}.{kind}" for cell in CELLS for kind in ("json", "jsonl")} | table
    )
    assert (finished / "fig2_stress.png").exists() and (
        finished / "fig2_stress_claims.png"
    ).exists()
    assert all(
        f"{c} - baseline" in (finished / "table_stress_n2.txt").read_text()
        for c in SYSTEM_PROMPTS
        if c != "baseline"
    )


def test_every_cell_meets_the_same_held_out_prompts(finished):
    """Differences between cells would be differences between prompts."""
    prompts = {
        tuple((row["seed"], row["x"]) for row in saved(path))
        for path in finished.glob("evals/stress_*.jsonl")
    }
    (common,) = prompts
    assert [seed for seed, _ in common] == [EVAL_SEED] * 2


def test_every_checkpoint_meets_the_same_noise(finished):
    """Differences between checkpoints would be differences between draws;
    here both checkpoints are the same model.
    """
    for condition in SYSTEM_PROMPTS:
        first, last = (
            finished / f"evals/stress_{condition}_step_000{step}_n2.jsonl" for step in STEPS
        )
        assert first.read_bytes() == last.read_bytes()


def test_every_paraphrase_is_used(trained, tmp_path):
    """A condition would be one sentence, and its result that sentence's;
    or answers to one prompt meet several.
    """
    run = shutil.copytree(trained, tmp_path / "run")
    stress(run, "--n", "14", "--steps", "0", "--conditions", "hard")
    (path,) = run.glob("evals/stress_*.jsonl")
    first, second, third = SYSTEM_PROMPTS["hard"]
    assert [row["system"] for row in saved(path)] == [first] * 4 + [second] * 4 + [third] * 4 + [
        first
    ] * 2
    for name, paraphrases in SYSTEM_PROMPTS.items():
        assert set(stress_test.systems(name, 32)) == set(paraphrases)
    assert "- baseline" not in (run / "table_stress_n14.txt").read_text()


def test_saved_cells_are_not_computed_again(finished, tmp_path, monkeypatch):
    """Minutes are lost at every redraw, or a result changes without a reason."""
    run = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(models, "load", no_model)
    stress(run, "--n", "2")
    assert results(run) == results(finished)


def test_new_texts_make_new_cells(finished, tmp_path, monkeypatch):
    """Results of old system prompts are shown under new ones."""
    run = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setitem(SYSTEM_PROMPTS, "soft", ("The reviewer likes doubt.",))
    seen = count_cells(monkeypatch)
    stress(run, "--n", "2")
    assert seen == [["The reviewer likes doubt."] * 2] * 2


@pytest.mark.parametrize("interrupt_at", [0, 3])
def test_interrupted_grid_goes_on_where_it_stopped(
    finished, trained, tmp_path, monkeypatch, interrupt_at
):
    """Finished cells are lost or repeated, or a resumed grid gives other numbers."""
    run = shutil.copytree(trained, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        count_cells(patch, interrupt_at)
        stress(run, "--n", "2")
    assert stop.value.code == 130
    assert len(list(run.glob("evals/stress_*.json"))) == interrupt_at
    for path in list(run.glob("evals/stress_*.json"))[:1]:
        path.unlink()  # cut short between a cell's two files
    seen = count_cells(monkeypatch)
    stress(run, "--n", "2")
    assert len(seen) == len(CELLS) - max(0, interrupt_at - 1)
    assert results(run) == results(finished)


def test_plot_only_needs_neither_model_nor_checkpoint(finished, tmp_path, monkeypatch):
    """Figures could not be drawn again from a published run, whose checkpoints are left out."""
    run = published(finished, tmp_path, "fig2*", "table*")
    monkeypatch.setattr(models, "load", no_model)
    stress(run, "--n", "2", "--plot-only")
    assert results(run) == results(finished)
    stress(run, "--n", "2", "--plot-only", "--steps", "2", "--conditions", "soft,jailbreak")
    numbers = json.loads((run / "fig2_stress.json").read_text())["ours"][
        "honest_given_noncompliant"
    ]
    assert {c: list(steps) for c, steps in numbers.items()} == {"soft": ["2"], "jailbreak": ["2"]}


def test_figures_show_the_saved_numbers(finished):
    """A figure shows another metric, condition or checkpoint than it says."""
    for name, shown in (
        ("fig2_stress", ["honest_given_noncompliant", "parsed"]),
        ("fig2_stress_claims", ["claim_J_within", "parsed", "J"]),
    ):
        numbers = json.loads((finished / f"{name}.json").read_text())
        assert numbers["n"] == 2 and list(numbers["ours"]) == shown
        for metric, condition, step in (
            (m, c, s) for m in shown for c in SYSTEM_PROMPTS for s in STEPS
        ):
            cell = json.loads(
                (finished / f"evals/stress_{condition}_step_000{step}_n2.json").read_text()
            )
            assert numbers["ours"][metric][condition][str(step)] == cell[metric]


def test_every_condition_can_be_told_from_the_others():
    """Two lines look the same, or a condition has no published value beside it."""
    assert (
        len({figures.COLOURS[c] for c in SYSTEM_PROMPTS})
        == len({figures.MARKERS[c] for c in SYSTEM_PROMPTS})
        == len(SYSTEM_PROMPTS)
    )
    assert {c: len(values) for c, values in figures.WRITEUP_STRESS.items()} == dict.fromkeys(
        SYSTEM_PROMPTS, 5
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--conditions", "baseline,harsh"],
            "--conditions 'harsh' is unknown: choose from baseline,",
        ),
        (["--conditions", "soft,"], "--conditions ''"),
        (["--steps", "0,1"], "--steps '1' is no checkpoint"),
        (["--steps", "²"], "--steps '²'"),
        (["--run", "runs/none"], "is runs/none a run folder?"),
        (["--n", "0"], "--n 0"),
        (["--device", "abacus"], "auto, cpu or cuda"),
        (["--condition", "soft"], "--condition"),
        (["--plot-only"], "no saved cells with n = 64"),
        (["--plot-only", "--n", "2"], "9 of 10 cells are missing"),
        (["--plot-only", "--n", "2", "--steps", "1"], "--steps '1'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_line_and_leaves_nothing(
    trained, finished, tmp_path, capsys, options, message
):
    """A traceback, a wait before a mistake is found, or a figure of half a grid."""
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "evals").mkdir()
    shutil.copy(finished / "evals/stress_soft_step_0002_n2.json", run / "evals")
    shutil.copy(finished / "evals/stress_soft_step_0002_n2.jsonl", run / "evals")
    # without its rollouts
    shutil.copy(finished / "evals/stress_hard_step_0000_n2.json", run / "evals")
    before = results(run)
    with pytest.raises(SystemExit) as error:
        stress(run, *options)
    assert error.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert message in line
    assert results(run) == before
