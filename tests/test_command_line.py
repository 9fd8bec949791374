"""The command line of grpo.py:
bad input ends with one clear line, --help names all options, and Ctrl-C loses nothing.
"""

import dataclasses
import signal
import subprocess
import sys

import pytest

import grpo
import rewards
import run_folder
from tiny_runs import POLICY, RUN, TINY, files, rows, run_grpo

# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        (["--stpes", "3"], "--stpes"),
        (["--steps", "three"], "--steps"),
        (["extra"], "extra"),
        (["--steps", "0"], "--steps 0"),
        (["--group-size", "1"], "--group-size 1"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr", "-1"], "--lr -1"),
        (["--temperature", "0"], "--temperature 0"),
        (["--kl-coef", "nan"], "--kl-coef nan"),
        (["--normaliser", "mean"], "--normaliser 'mean'"),
        (["--dtype", "float16"], "--dtype 'float16'"),
        (["--sampler", "fast"], "--sampler 'fast'"),
        (["--truncated-reward", "1"], "--truncated-reward '1'"),
        (["--confession", "none"], "--confession 'none'"),
        (["--device", "abacus"], "auto, cpu or cuda"),
        (["--model", "no/such/model", "--judge", POLICY], "existing folder"),
        (["--judge", "no/such/model"], "existing folder"),
        (["--model", "no/such/model"], "--judge is required"),
        (["--task", "no_such_task"], "no tasks/no_such_task.py"),
        (["--task", ""], "--task ''"),
        (["--task", "../word_count"], "--task '../word_count'"),
        (["--task", "rewards"], "rewards.py lacks make_prompt"),
        (["--answer-reward", "rewards.no_such_reward"], "rewards.no_such_reward"),
        (["--confession-reward", "no_such_module.reward"], "no_such_module.reward"),
        (["--confession-reward", "honesty_reward"], "module.function"),
        (
            ["--confessions-per-answer", "65"],
            "--confessions-per-answer 65 is more than --batch-size 64",
        ),
        (["--confessions-per-answer", "0"], "--confessions-per-answer 0"),
        (["--confession-advantage-scale", "std"], "--confession-advantage-scale 'std'"),
        (["--answer-advantage-scale", "max"], "--answer-advantage-scale 'max'"),
        (["--confession-reward", "..rewards.honesty_reward"], "module.function"),
        (["--max-answer-tokens", "2000"], "--max-answer-tokens"),
        (["--name", "taken"], "--resume"),
        (["--resume", "runs/none"], "is runs/none a run folder?"),
        (["--resume", "runs/taken"], "no run folder"),
        (["--resume", "runs/started"], "another version"),
        (["--resume", "runs/started", "--steps", "5"], "drop the other options"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_line_and_leaves_nothing(tmp_path, capsys, options, message):
    """A traceback, a long wait before a mistake is found,
    or a run folder that blocks the corrected command's name.
    """
    (tmp_path / "runs/taken").mkdir(parents=True)
    (tmp_path / "runs/taken/config.json").write_text("{}")
    (tmp_path / "runs/started").mkdir()
    (tmp_path / "runs/started/config.json").write_text('{"config": {}}')
    before = files(tmp_path), sorted(tmp_path.rglob("*"))
    complete = (
        options if "--resume" in options else ["--model", POLICY, *TINY, "--name", "new", *options]
    )
    with pytest.raises(SystemExit) as error:
        run_grpo(tmp_path, *complete)
    assert error.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert message in line
    assert (files(tmp_path), sorted(tmp_path.rglob("*"))) == before


def test_a_run_without_verdicts_ends_at_its_first_step(tmp_path, monkeypatch, capsys):
    """A judge that never judges leaves the answers without reward,
    and the run goes on as confession training.
    """
    monkeypatch.setattr(rewards, "framed_ids", lambda _, cases, frame: [None] * len(cases))
    with pytest.raises(SystemExit):
        run_grpo(tmp_path, *RUN, "--answer-reward", "rewards.judge_reward")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert (
        "no verdict on 2 of the 2 answers of the first step" in line
        and "breaks the frame" in line
        and "--judge" in line
    )
    assert not (tmp_path / "runs/run/metrics.jsonl").exists()


def test_help_names_every_option(tmp_path, capsys):
    """--help breaks on a help text, or hides an option."""
    with pytest.raises(SystemExit) as error:
        run_grpo(tmp_path, "--help")
    shown = capsys.readouterr().out
    assert error.value.code == 0
    assert all(
        f"--{field.name.replace('_', '-')}" in shown for field in dataclasses.fields(grpo.Config)
    )


# ------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path):
    """Work is lost, the exit code says that all is well, or a traceback covers the screen."""
    endless = ["--steps", "1000", "--checkpoint-every", "1000"]
    command = [
        sys.executable,
        "-u",
        grpo.__file__,
        "--model",
        POLICY,
        *TINY,
        *endless,
        "--name",
        "run",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (line := process.stdout.readline()).startswith("step    1 "):
            assert line or process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    run = tmp_path / "runs" / "run"
    steps = [row["step"] for row in rows(run / "metrics.jsonl")]
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert run_folder.checkpoint_steps(run) == [0, steps[-1]]
    assert (run / "evals" / f"step_{steps[-1]:04d}.json").exists()
