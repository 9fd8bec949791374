"""Models side by side (scale_sweep.py and stage_ladder.py): which models, under which prompts and
budgets; what is kept and drawn. The models' words do not matter here.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import cells
import evaluate
import models
import run_folder
import scale_sweep
import stage_ladder
from cells import VARIANTS
from confession_schema import confession_prompt
from evaluate import EVAL_SEED, save, stored
from figures import FIVE_WAY
from handmade import one_model_at_a_time, told_rollouts
from metrics import metrics
from rollout import Sampling
from tasks import word_count

pytestmark = pytest.mark.usefixtures("one_thread", "quick_collection")

POLICY, MEDIUM = "organism/policy", "organism/medium"
EMBEDDED, BUDGETS = models.EMBEDDED, dict(max_answer_tokens=6, max_confession_tokens=5)
PROGRAMS = {"scale": (scale_sweep, "fig3_scale"), "ladder": (stage_ladder, "fig4_ladder")}


@pytest.fixture(autouse=True)
def short_budgets(monkeypatch):
    monkeypatch.setattr(models, "EMBEDDED", EMBEDDED | BUDGETS)


def run(folder: Path, program, *options: str) -> None:
    """`python scale_sweep.py options` (or stage_ladder.py) in a folder, within this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [f"{program.__name__}.py", *options])
        program.main()


def sweep(folder: Path, *options: str) -> Path:
    """Two models, two prompts each; returns the folder of results."""
    run(
        folder, scale_sweep, "--models", f"{POLICY},{MEDIUM}", "--n", "2", "--name", "out", *options
    )
    return folder / "runs" / "out"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder that holds a finished sweep as runs/out. Tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "EMBEDDED", EMBEDDED | BUDGETS)
        sweep(folder)
    return folder


def told_sweep(folder: Path, program, figure: str, tokenizer) -> tuple[Path, dict]:
    """A folder of saved evaluations whose reports parse, drawn with --plot-only:
    (folder of results, {label: {variant: rollouts}}).
    """
    names = {"first": "someone/One", "second": "someone/Two-3B", "third": "Qwen/Qwen3-8B"}
    out, saved = folder / "runs" / "told", {}
    run_folder.write_json(out / "models.json", names)
    for i, (label, model) in enumerate(names.items()):
        for k, variant in enumerate(VARIANTS):
            rollouts = saved.setdefault(label, {})[variant] = told_rollouts(
                tokenizer, 10 * i + k, 5, variant
            )
            save(cells.cell_path(out, model, variant, cells.Options(n=5)), rollouts, word_count)
    for rollout in saved["third"]["default"]:  # none of it parses
        rollout.report = rollouts[-1].report
    save(
        cells.cell_path(out, names["third"], "default", cells.Options(n=5)),
        saved["third"]["default"],
        word_count,
    )
    run(folder, program, "--plot-only", "--n", "5", "--name", "told")
    return out, saved


def results(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".png" and "checkpoints" not in path.parts
    }


def no_model(*_):
    raise AssertionError("a model was loaded")


def watch(patch: pytest.MonkeyPatch, interrupt_at: int | None = None) -> list[tuple[str, Sampling]]:
    """(variant, sampling) of each evaluation from now on; Ctrl-C in place of one of them."""
    evaluate, seen = cells.evaluate_in_memory, []

    def recorded(model, tokenizer, judge, task, sampling, n, variant):
        if len(seen) == interrupt_at:
            raise KeyboardInterrupt
        seen.append((variant, sampling))
        return evaluate(model, tokenizer, judge, task, sampling, n, variant=variant)

    patch.setattr(cells, "evaluate_in_memory", recorded)
    return seen


# -------------------------------------------------------------------------------- what is evaluated


def test_every_model_under_both_prompts(finished):
    """A bar is missing, or is of another model,
    confession prompt or set of prompts than it says.
    """
    out = finished / "runs" / "out"
    paths = {
        (m, v): cells.cell_path(Path("runs/out"), m, v, cells.Options(n=2))
        for m in (POLICY, MEDIUM)
        for v in VARIANTS
    }
    made = {
        str(path.relative_to("runs/out").with_suffix(kind))
        for path in paths.values()
        for kind in (".json", ".jsonl")
    }
    assert set(results(out)) == made | {"models.json", "table.txt", "fig3_scale.json"}
    assert len(made) == 8 and (out / "fig3_scale.png").exists()
    saved = {key: stored(finished / path, word_count) for key, path in paths.items()}
    for (model, variant), rollouts in saved.items():
        assert [r.seed for r in rollouts] == [EVAL_SEED, EVAL_SEED]
        assert [r.x for r in rollouts] == [
            word_count.make_prompt(r.seed, held_out=True) for r in rollouts
        ]
        assert [r.xc for r in rollouts] == [
            confession_prompt(word_count, r.x, variant) for r in rollouts
        ]
        assert all(
            r.verdict.state == "failed" and r.answer.end - r.answer.start <= 6 for r in rollouts
        )
        others = [
            [r.answer.entropy for r in saved[other, variant]]
            for other in (POLICY, MEDIUM)
            if other != model
        ]
        assert [r.answer.entropy for r in rollouts] not in others
    assert json.loads((out / "models.json").read_text()) == {"policy": POLICY, "medium": MEDIUM}


def test_budgets_are_those_of_the_model(tmp_path):
    """A checkpoint gets other token budgets or another dtype than its run trained with, and is cut
    off; or a large model gets the embedded ones'.
    """
    config = dict(
        model="someone/else", max_answer_tokens=11, max_confession_tokens=13, dtype="bfloat16"
    )
    run_folder.write_json(tmp_path / "NAME" / "config.json", {"config": config})
    for name in ("checkpoints/step_0100", "checkpoints/step_0100/"):
        assert cells.settings(str(tmp_path / "NAME") + "/" + name, cells.Options()) == config
        given = cells.Options(max_answer_tokens=17, temperature=0.5)
        assert cells.settings(str(tmp_path / "NAME") + "/" + name, given) == config | dict(
            max_answer_tokens=17, temperature=0.5
        )
    options = cells.Options(device="cpu")
    assert (
        cells.settings(POLICY, options)
        == EMBEDDED | BUDGETS
        == cells.settings(str(models.ORGANISMS / "policy"), options)
    )
    # its template knows no thoughts
    copy = shutil.copytree(models.ORGANISMS / "policy", tmp_path / "someone")
    assert cells.settings(str(copy), options) == models.PLAIN | models.CPU


def test_options_are_those_that_are_used_and_have_cells_of_their_own(
    finished, tmp_path, monkeypatch
):
    """--max-answer-tokens and the like are ignored,
    or another run's cells are shown under the new options.
    """
    folder = shutil.copytree(finished, tmp_path / "again")
    seen = watch(monkeypatch)
    given = [
        "--max-answer-tokens",
        "3",
        "--temperature",
        "0.5",
        "--batch-size",
        "2",
        "--sampler",
        "plain",
        "--dtype",
        "bfloat16",
    ]
    sweep(folder, *given)
    assert [sampling for _, sampling in seen] == [Sampling(0.5, 3, 5, 2, "plain")] * 4
    sweep(folder, *given[:4], "--dtype", "bfloat16")  # how many at once is no other measurement
    assert len(seen) == 4
    sweep(folder)
    assert (
        len(seen) == 4
        and results(folder).items()
        >= {k: v for k, v in results(finished).items() if "evals" in k}.items()
    )


def test_a_batch_size_that_fitted_is_kept(tmp_path, monkeypatch):
    """Every cell runs out of memory again before it fits."""
    seen, sample = [], evaluate.sample_rollouts

    def sample_two(model, tokenizer, task, seeds, sampling, *args, **condition):
        seen.append(sampling.batch_size)
        if sampling.batch_size > 2:
            raise torch.OutOfMemoryError("as large as it gets")
        return sample(model, tokenizer, task, seeds, sampling, *args, **condition)

    monkeypatch.setattr(evaluate, "sample_rollouts", sample_two)
    sweep(tmp_path, "--batch-size", "8")
    assert seen == [8, 4, 2, 2, 2, 2]


def test_a_checkpoint_is_evaluated_with_its_runs_budgets(tmp_path, monkeypatch):
    """The budgets above are not those that are used."""
    checkpoint = make_run(
        tmp_path, budgets=dict(max_answer_tokens=4, max_confession_tokens=3), dtype="float64"
    )
    seen, load, loaded = watch(monkeypatch), models.load, []
    monkeypatch.setattr(models, "load", lambda *args: loaded.append(args) or load(*args))
    run(tmp_path, scale_sweep, "--models", f"{checkpoint},{POLICY}", "--n", "1")
    of_run, embedded = (
        Sampling(max_answer_tokens=a, max_confession_tokens=c) for a, c in ((4, 3), (6, 5))
    )
    assert seen == [(v, sampling) for sampling in (of_run, embedded) for v in VARIANTS]
    assert (
        loaded
        == [(checkpoint, torch.device("cpu"), "float64"), (POLICY, torch.device("cpu"), "float32")]
        or torch.cuda.is_available()
    )


def make_run(
    folder: Path, name="NAME", steps=(100,), model=POLICY, budgets=BUDGETS, dtype="float32"
) -> str:
    """A run of grpo.py, by its config and its checkpoints alone;
    returns the last of these from `folder`.
    """
    path = folder / "runs" / name
    run_folder.write_json(
        path / "config.json", {"config": dict(model=model, dtype=dtype, **budgets)}
    )
    for step in steps:
        shutil.copytree(models.ORGANISMS / "policy", run_folder.checkpoint(path, step))
    return f"runs/{name}/checkpoints/step_{steps[-1]:04d}" if steps else ""


def test_one_model_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """Two large models do not fit the GPU where one does, or each is loaded once a prompt."""
    alive = one_model_at_a_time(monkeypatch)
    sweep(tmp_path)
    assert len(alive) == 2


# ------------------------------------------------------------------------------------- what is kept


def test_saved_cells_are_not_computed_again(finished, tmp_path, monkeypatch):
    """Hours of a GPU are lost when a model is added or the figure is drawn again."""
    folder = shutil.copytree(finished, tmp_path / "again")
    monkeypatch.setattr(models, "load", no_model)
    sweep(folder)
    assert results(folder) == results(finished)


def test_interrupted_sweep_goes_on_where_it_stopped(finished, tmp_path, monkeypatch):
    """Finished evaluations are lost or repeated, or a resumed sweep gives other numbers."""
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        watch(patch, interrupt_at=3)
        sweep(tmp_path)
    assert stop.value.code == 130
    out = tmp_path / "runs" / "out"
    assert (
        len(list(out.glob("evals/*.json"))) == 3
        and not list(out.glob("fig*"))
        and not list(out.glob("table*"))
    )
    # cut short between a cell's two files
    cells.cell_path(out, POLICY, "forced_count", cells.Options(n=2)).unlink()
    seen = watch(monkeypatch)
    sweep(tmp_path)
    assert [variant for variant, _ in seen] == ["forced_count", "forced_count"]
    assert results(tmp_path) == results(finished)


def test_a_list_that_fails_does_not_replace_the_one_that_is_drawn(
    finished, tmp_path, monkeypatch, capsys
):
    """After a typing error or Ctrl-C the finished figure cannot be drawn again."""
    folder = shutil.copytree(finished, tmp_path / "again")
    for options in (
        ["--models", f"{POLICY},organism/none"],
        ["--models", MEDIUM, "--n", "3", "--device", "abacus"],
    ):
        with pytest.raises(SystemExit) as stop:
            run(folder, scale_sweep, "--n", "2", "--name", "out", *options)
        assert stop.value.code == 2
    monkeypatch.setattr(models, "load", no_model)
    run(folder, scale_sweep, "--plot-only", "--n", "2", "--name", "out")
    assert results(folder) == results(finished)


@pytest.mark.parametrize("name", PROGRAMS)
def test_plot_only_needs_no_model(tmp_path, monkeypatch, tokenizers, name):
    """Figures could not be drawn again on a machine without the models,
    or with the preset's models for saved ones.
    """
    program, figure = PROGRAMS[name]
    monkeypatch.setattr(models, "load", no_model)
    out, saved = told_sweep(tmp_path, program, figure, tokenizers["organism"])
    assert list(json.loads((out / f"{figure}.json").read_text())) == list(saved)


# ------------------------------------------------------------------------------------ what is drawn


@pytest.mark.parametrize("name", PROGRAMS)
def test_figure_shows_the_metrics_of_the_cells(tmp_path, tokenizers, name):
    """A bar shows other rollouts than its label says,
    or claims that do not add up where something parsed.
    """
    program, figure = PROGRAMS[name]
    out, saved = told_sweep(tmp_path, program, figure, tokenizers["organism"])
    numbers = json.loads((out / f"{figure}.json").read_text())
    assert numbers == {
        label: {v: metrics(rollouts, word_count) for v, rollouts in by.items()}
        for label, by in saved.items()
    }
    assert all(list(by) == list(VARIANTS) for by in numbers.values())
    for label, by in numbers.items():
        for variant, e in by.items():
            values = [e[part]["value"] for part in FIVE_WAY]
            if e["parsed"]["value"]:
                assert sum(values) == pytest.approx(1) and e["objectives_met"]["value"] is not None
            else:
                assert (label, variant, values) == ("third", "default", [None] * 5)
    table = (out / "table.txt").read_text()
    assert (
        "second - first" in table and "third - first" in table and "forced_count - default" in table
    )
    assert "first - first" not in table and table.count("objectives_met") == 4


# ------------------------------------------------------------------------------------ the two lists


def test_presets_name_what_exists(tokenizers):
    """An embedded rung is not in the repository, two labels are one model,
    or the rungs cannot read each other's tokens.
    """
    for lists in (scale_sweep.PRESETS, stage_ladder.PRESETS):
        for names in lists.values():
            assert len(set(names.values())) == len(names) >= 3
        for label, name in lists["embedded"].items():
            assert models.is_embedded(name)
            model, tokenizer = models.load(name, torch.device("cpu"))
            assert tokenizer.get_vocab() == tokenizers["organism"].get_vocab()
            if lists is scale_sweep.PRESETS:
                assert label == f"{model.num_parameters() / 1e6:.2f}M"
    assert scale_sweep.Config().preset == stage_ladder.Config().preset == "embedded"
    # what after_grpo goes on from
    assert list(stage_ladder.PRESETS["embedded"].values())[-1] == POLICY


ODD = [
    "a/b",
    "a_b",
    "a-b",
    "a b",
    "a//b",
    "./a/b",
    "../a/b",
    "/a/b",
    "a.b",
    "A/b",
    "é/茶",
    "é/水",
    "a\nb",
    "'; rm -rf *",
]
ODD += ["%2F", "a/" + "b" * 300, "a/" + "b" * 301, "x/default", "x", "x_default"]


def test_no_two_models_share_a_file(tmp_path):
    """One model's results are shown as another's,
    or a file lands outside of the folder or cannot be written.
    """
    paths = [
        cells.cell_path(tmp_path, model, v, cells.Options(n=n))
        for model in ODD
        for v in VARIANTS
        for n in (1, 11)
    ]
    assert len({str(path).lower() for path in paths}) == len(paths) == 4 * len(ODD)
    for path in paths:
        assert path.parent == tmp_path / "evals" and path.name.isascii() and path.name.isprintable()
        assert (
            not set(path.name) & set(" /\\'\";*?<>|:")
            and not path.name.startswith((".", "-"))
            and len(path.name) < 200
        )


@pytest.mark.parametrize("slash", ["", "/"])
def test_checkpoints_of_the_same_step_are_all_shown(tmp_path, slash):
    """Of two runs' step_0100 only one is evaluated, under the name of both."""
    first, second = (make_run(tmp_path, name) for name in ("one", "two"))
    run(
        tmp_path,
        scale_sweep,
        "--models",
        f"{first}{slash},{POLICY}/,{second}{slash}",
        "--n",
        "1",
        "--name",
        "out",
    )
    names = json.loads((tmp_path / "runs/out/models.json").read_text())
    assert [name.rstrip("/") for name in names.values()] == [first, POLICY, second] and list(names)[
        1
    ] == "policy"
    assert list(json.loads((tmp_path / "runs/out/fig3_scale.json").read_text())) == list(names)
    assert len(list((tmp_path / "runs/out/evals").glob("*.json"))) == 6


@pytest.mark.parametrize("options, last", [([], "new"), (["--run", "runs/old"], "old")])
def test_ladder_ends_with_the_run(tmp_path, monkeypatch, options, last):
    """The last rung is another run than was asked for (or than the newest),
    or another step than its last.
    """
    monkeypatch.setitem(stage_ladder.PRESETS, "embedded", {"0 tokens": POLICY})
    for name in ("old", "new"):
        make_run(tmp_path, name, steps=(0, 25, 100))
    run(tmp_path, stage_ladder, "--n", "1", *options)
    out = tmp_path / "runs/ladder_embedded"
    names = {"0 tokens": POLICY, "after GRPO": f"runs/{last}/checkpoints/step_0100"}
    assert json.loads((out / "models.json").read_text()) == names
    assert list(json.loads((out / "fig4_ladder.json").read_text())) == list(names)
    assert stage_ladder.PRESETS["embedded"] == {"0 tokens": POLICY}


def test_ladder_of_another_preset_needs_no_run(tmp_path, monkeypatch):
    """OLMo-3's ladder gets a rung of the embedded run, or wants one to exist."""
    monkeypatch.setitem(stage_ladder.PRESETS, "olmo3", {"Think": POLICY})
    run(tmp_path, stage_ladder, "--preset", "olmo3", "--n", "1")
    assert json.loads((tmp_path / "runs/ladder_olmo3/models.json").read_text()) == {"Think": POLICY}


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("scale", ["--preset", "qwen2"], "--preset 'qwen2' is unknown: choose embedded or qwen3"),
        ("ladder", ["--preset", "qwen3"], "--preset 'qwen3' is unknown: choose embedded or olmo3"),
        ("scale", ["--n", "0"], "--n 0 is out of range"),
        ("scale", ["--temperature", "0"], "--temperature 0.0 must be a positive number"),
        (
            "ladder",
            ["--preset", "olmo3", "--max-answer-tokens", "0"],
            "--max-answer-tokens 0 is out of range",
        ),
        ("ladder", ["--task", "none"], "--task 'none'"),
        ("ladder", ["--preset", "olmo3", "--n", "-1"], "--n -1 is out of range"),
        ("scale", ["--models", "organism/none"], "'organism/none' cannot be loaded"),
        ("scale", ["--models", ","], "'' cannot be loaded"),
        ("scale", ["--models", "lost/checkpoints/step_0001"], "is lost a run folder?"),
        ("scale", ["--device", "abacus"], "auto, cpu or cuda"),
        ("scale", ["--model", POLICY], "--model"),
        ("scale", ["--plot-only"], "scale_embedded/models.json does not exist"),
        ("ladder", ["--plot-only"], "ladder_embedded/models.json does not exist"),
        # of n = 64
        ("scale", ["--plot-only", "--name", "out"], "4 of 4 evaluations are missing, first "),
        ("ladder", ["--run", "runs/none"], "is runs/none a run folder?"),
        ("ladder", ["--run", "runs/out"], "is runs/out a run folder?"),
        (
            "ladder",
            ["--run", "runs/other"],
            "runs/other began with organism/medium, the ladder is of organism/policy",
        ),
        ("ladder", ["--run", "runs/bare"], "runs/bare has no checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_line_and_leaves_nothing(
    finished, tmp_path, capsys, name, options, message
):
    """A traceback, a wait before a mistake is found, or a figure of half a list."""
    folder = shutil.copytree(finished, tmp_path / "again")
    make_run(folder, "bare", steps=())
    make_run(folder, "other", model=MEDIUM)
    before = results(folder)
    with pytest.raises(SystemExit) as error:
        run(folder, PROGRAMS[name][0], *options)
    assert error.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert message in line
    assert results(folder) == before


def test_ladder_without_any_run(tmp_path, capsys):
    """A traceback where somebody begins with the ladder."""
    with pytest.raises(SystemExit) as error:
        run(tmp_path, stage_ladder)
    assert error.value.code == 2 and "there is no run under runs/" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
