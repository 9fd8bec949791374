"""Watching a run: figures that are drawn while it trains, TensorBoard's files, the time left."""

import shutil
import sys
from pathlib import Path

import pytest

import figures
import grpo
import run_folder
from runtime.progress import TimeLeft
from tiny_runs import RUN, rows, run_grpo


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The run folder of two steps, its evaluations and its figures. Tests only read it."""
    folder = tmp_path_factory.mktemp("watched")
    run_grpo(folder, *RUN)
    return folder / "runs" / "run"


# ------------------------------------------------------------------------------------------- --live


def test_figures_follow_a_run_until_it_ends(finished, tmp_path, monkeypatch):
    """A picture stays behind the run or is drawn for nothing, a line that is being written ends the
    watching, or what was written last is not drawn.
    """
    run = tmp_path / "run"
    (run / "evals").mkdir(parents=True)
    shutil.copy(finished / "config.json", run)
    lines = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
    evaluation = lambda i: shutil.copy(finished / "evals" / f"step_000{i}.json", run / "evals")

    def training():
        with run_folder.locked(run), (run / "metrics.jsonl").open("a", buffering=1) as log:
            yield "nothing is there yet"
            evaluation(0)
            yield "an evaluation"
            yield "nothing new"
            log.write(lines[0])
            yield "a step"
            log.write(lines[1][:20])
            yield "a part of a step, which is nothing yet"
            log.write(lines[1][20:])
            evaluation(2)
            # between a look at the lock and the look at the logs nothing may be missed
        while True:
            yield "the end"

    moments = training()
    next(moments)
    monkeypatch.setattr(figures.time, "sleep", lambda seconds: next(moments))
    names = lambda paths: [path.name for path in paths]
    first, *step_curves = [path.name for path in figures.reproduction(finished)]
    drawn = [(steps, names(paths)) for steps, paths in figures.live(run)]
    assert drawn == [(0, [first]), (1, [first, *step_curves]), (2, [first, *step_curves])]
    assert all((run / name).read_bytes().endswith(b"IEND\xaeB`\x82") for name in drawn[-1][1])
    of = lambda folder: run_folder.read_json(folder / first.replace(".png", ".json"))
    assert of(run)["ours"]["parsed"] == {
        step: value for step, value in of(finished)["ours"]["parsed"].items() if step != "1"
    }
    assert set(run_folder.read_json(run / "fig5_judge_fooled.json")["steps"]) == {"1", "2"}


def test_a_finished_run_is_drawn_once(finished, tmp_path, monkeypatch, capsys):
    """The command hangs after the end of a run, or says nothing."""
    run = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(figures.time, "sleep", lambda seconds: pytest.fail("waits for nobody"))
    monkeypatch.setattr(sys, "argv", ["figures.py", "--run", str(run), "--live", "true"])
    figures.main()
    drawn, ended = capsys.readouterr().out.splitlines()
    assert drawn.startswith("2 steps: ") and "fig1_honesty.png" in drawn and str(run) in ended


@pytest.mark.parametrize("options", [[], ["--live", "true"]], ids=["once", "live"])
def test_a_run_that_is_not_there(tmp_path, monkeypatch, capsys, options):
    """A wrong name is waited for, or ends in a traceback."""
    monkeypatch.setattr(sys, "argv", ["figures.py", "--run", str(tmp_path / "none"), *options])
    with pytest.raises(SystemExit, match="2"):
        figures.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'none'} a run folder?" in line


def test_ctrl_c_ends_the_watching(finished, monkeypatch, capsys):
    """A traceback, where nothing went wrong."""

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures.time, "sleep", interrupted)
    monkeypatch.setattr(figures, "_drawn", lambda *_: [])
    monkeypatch.setattr(sys, "argv", ["figures.py", "--run", str(finished), "--live", "true"])
    with run_folder.locked(finished), pytest.raises(SystemExit, match="130"):
        figures.main()
    assert "Traceback" not in capsys.readouterr().err


# -------------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_shows_what_the_logs_hold(tmp_path, monkeypatch):
    """A number is missing or has another name there, or a resumed run shows a step twice."""
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def crash(row, seconds, format_step=grpo.progress.format_step):
        if row["step"] == 2:  # recorded, but beyond the last checkpoint
            raise RuntimeError("crash")
        return format_step(row, seconds)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="crash"):
        patch.setattr(grpo.progress, "format_step", crash)
        run_grpo(tmp_path, *RUN)
    run = tmp_path / "runs" / "run"
    assert len(list((run / "events").iterdir())) == 1
    run_grpo(tmp_path, "--resume", "runs/run")
    seen = EventAccumulator(str(run / "events"))
    seen.Reload()
    logged = {}
    for row in rows(run / "metrics.jsonl") + rows(run / "timing.jsonl"):
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "step":
                logged.setdefault(name, []).append((row["step"], value))
    assert set(seen.Tags()["scalars"]) == set(logged) and "grad_norm" in logged
    for name, values in logged.items():
        found = [(event.step, event.value) for event in seen.Scalars(name)]
        assert found == [(step, pytest.approx(float(value), rel=1e-6)) for step, value in values], (
            name
        )


def test_without_tensorboard_nothing_is_missing(tmp_path, monkeypatch):
    """A package that is optional is needed after all."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with grpo.progress.event_files(tmp_path, 0) as log:
        log({"step": 1, "loss": 0.5})
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------ the time left


def test_time_left_counts_evaluations():
    """A run of 90 steps of 2 s with evaluations of 30 s is announced as one of 3 minutes."""
    left = TimeLeft(steps=90, checkpoint_every=25)
    left.of_evaluations.append(30.0)
    left.of_steps += [60.0, 2.0, 2.0]  # the first one compiles
    assert left.after(3) == 87 * 2 + 4 * 30  # at 25, 50, 75 and 90
    assert left.after(25) == 65 * 2 + 4 * 30  # that of 25 is still to come
    assert left.after(26) == 64 * 2 + 3 * 30
    assert left.after(90) == 30
    left.of_steps += [5.0] * 10  # rollouts have grown
    assert left.after(89) == 5 + 30


def test_a_run_measures_its_evaluations(finished, tmp_path, monkeypatch, capsys):
    """The first estimate knows of no evaluation, or one that was there before counts as quick."""
    show, measured = grpo.progress.show, []

    def recorded(bar, row, seconds, left, *rest):
        show(bar, row, seconds, left, *rest)
        measured.append(
            (row["step"], len(left.of_evaluations), min(left.of_evaluations, default=1))
        )

    monkeypatch.setattr(grpo.progress, "show", recorded)
    run_grpo(tmp_path, *RUN)
    run = tmp_path / "runs" / "run"
    shutil.rmtree(run_folder.checkpoint(run, 2))
    run_grpo(tmp_path, "--resume", "runs/run")
    assert [numbers[:2] for numbers in measured] == [(1, 1), (2, 2), (2, 0)]
    assert all(seconds > 0.01 for *_, seconds in measured)
    shown = capsys.readouterr().err
    assert "| 1/2 [" in shown and " left]" in shown
