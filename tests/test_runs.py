"""Whole runs of the program: what they leave behind, that a resumed run repeats an uninterrupted one to the byte, and
that bad input ends with one clear line. The models' words do not matter here."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import grpo
import models
import rewards
import run_folder
from tasks import word_count

POLICY = str(models.ORGANISMS / "policy")
TINY = """--steps 2 --prompts-per-step 1 --group-size 2 --max-answer-tokens 24 --max-confession-tokens 24 --eval-n 2
--checkpoint-every 1""".split()
REWARD = ["--answer-reward", "test_runs.some_reward", "--confession-reward", "test_runs.some_reward"]
REWARD += ["--truncated-reward", "judge", "--temperature", "2"]  # none of these answers finishes, and some are alike at 1
RUN = ["--model", POLICY, *TINY, *REWARD, "--name", "run"]


def some_reward(rollouts) -> list[float]:
    """A reward that differs within a group, so that every step changes the weights."""
    return [sum(rollout.token_ids) % 1_009 / 1_009 for rollout in rollouts]


def run_grpo(folder: Path, *options: str) -> None:
    """`python grpo.py options` in a folder, within this process."""
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["grpo.py", *options])
        try:
            grpo.main()
        finally:
            signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The run folder of two uninterrupted steps. Tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    run_grpo(folder, *RUN)
    return folder / "runs" / "run"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------ the run folder


def test_run_folder_holds_what_its_docstring_says(finished):
    """A file that a later program reads is missing, or temporary files stay behind."""
    model = {"config.json", "generation_config.json", "model.safetensors", "optimizer.safetensors"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    expected = {"config.json", "metrics.jsonl", "timing.jsonl", "table.txt", "lock"}
    expected |= {f"rollouts/step_000{i}.jsonl" for i in (1, 2)}
    expected |= {f"checkpoints/step_000{i}/{name}" for i in (0, 1, 2) for name in model | tokenizer}
    expected |= {f"evals/step_000{i}.{kind}" for i in (0, 1, 2) for kind in ("json", "jsonl")}
    figures = {name for name in files(finished) if "/" not in name} - expected
    assert set(files(finished)) - figures == expected
    assert figures and all((finished / name).with_suffix(s).exists() for name in figures for s in (".png", ".json"))


def test_config_holds_every_value_used(finished):
    """A run cannot be told from another one, or resumes with other values than it began with."""
    data = json.loads((finished / "config.json").read_text())
    config = data["config"]
    assert set(config) == {field.name for field in dataclasses.fields(grpo.Config)}
    assert {name for name, value in config.items() if value is None} == {"resume"}
    chosen = dict(model=POLICY, name="run", steps=2, prompts_per_step=1, group_size=2, checkpoint_every=1, eval_n=2)
    chosen |= dict(max_answer_tokens=24, max_confession_tokens=24, temperature=2.0)
    chosen |= dict(answer_reward=REWARD[1], confession_reward=REWARD[3], truncated_reward="judge")
    filled_in = models.EMBEDDED | chosen
    assert {name: config[name] for name in filled_in} == filled_in
    assert {"torch", "transformers", "safetensors", "numpy", "python"} <= set(data["versions"])
    assert set(data["git"]) == {"commit", "dirty"}
    assert set(data["prompts"]) == {"x", "xc", "judge"} and all(len(p["sha256"]) == 64 for p in data["prompts"].values())


def test_logs_have_a_line_a_step(finished):
    """Steps are lost or logged twice, or metrics that should repeat depend on the clock."""
    metrics, timing = rows(finished / "metrics.jsonl"), rows(finished / "timing.jsonl")
    assert [row["step"] for row in metrics] == [row["step"] for row in timing] == [1, 2]
    assert not {"sample", "judge", "score", "train"} & set(metrics[0])
    assert all(row["grad_norm"] > 0 for row in metrics)


def test_saved_rollouts_are_complete_and_load_again(finished):
    """Figures and tables could not be redrawn without the model."""
    for path in finished.glob("rollouts/step_*.jsonl"):
        saved = rows(path)
        assert len(saved) == 2
        for row in saved:
            assert {"x", "z", "y", "xc", "zc", "yc", "token_ids", "report", "truth"} <= set(row)
            assert {"reward", "advantage", "finish"} <= set(row["answer"]) and "reply" in row["verdict"]
            assert row["answer"]["reward"] == row["confession"]["reward"] == sum(row["token_ids"]) % 1_009 / 1_009
        assert saved[0]["answer"]["advantage"] == pytest.approx(-saved[1]["answer"]["advantage"]) != 0
        loaded = run_folder.load_rollouts(path, word_count)
        assert [json.loads(json.dumps(rollout.to_json())) for rollout in loaded] == saved


def test_checkpoints_load_with_transformers_alone(finished):
    """A checkpoint is useful only to this program, holds a pickle, or is not the trained model."""
    assert {path.suffix for path in finished.glob("checkpoints/*/*")} == {".safetensors", ".json", ".jinja"}
    weights = []
    for step in (0, 1, 2):
        path = run_folder.checkpoint(finished, step)
        model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert model.dtype == torch.float32  # bfloat16 would round small steps away
        assert AutoTokenizer.from_pretrained(path).chat_template
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    original, _ = models.load(POLICY, torch.device("cpu"))
    assert torch.equal(weights[0], torch.cat([p.flatten() for p in original.parameters()]))
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


# ------------------------------------------------------------------------------------------------------------ resuming


def redrawn(name: str) -> bool:
    """Whether a file may differ between two runs of the same steps: it holds times, or a figure's compressed bytes."""
    return name in ("timing.jsonl", "lock") or name.endswith(".png")


@pytest.mark.parametrize("crash_at", [1, 2])
def test_resumed_run_repeats_an_uninterrupted_one(finished, tmp_path, monkeypatch, crash_at):
    """Optimizer state, noise or prompts are not restored, or a step that was cut short is recorded twice."""
    format_step = grpo.progress.format_step

    def crash(row, seconds):  # at the worst moment: the step is recorded, and its checkpoint is not saved yet
        if row["step"] == crash_at:
            raise RuntimeError("crash")
        return format_step(row, seconds)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="crash"):
        patch.setattr(grpo.progress, "format_step", crash)
        run_grpo(tmp_path, *RUN)
    run = tmp_path / "runs" / "run"
    assert len(rows(run / "metrics.jsonl")) == crash_at
    assert run_folder.checkpoint_steps(run) == list(range(crash_at))
    (run / "checkpoints/tmp_step_0002").mkdir()
    (run / "checkpoints/tmp_step_0002/rest.tmp").touch()  # of a checkpoint that was cut short
    run_grpo(tmp_path, "--resume", "runs/run")
    expected, got = files(finished), files(run)
    assert got.keys() == expected.keys()
    assert [name for name in got if got[name] != expected[name] and not redrawn(name)] == []


def test_resuming_a_finished_run_changes_nothing(finished, tmp_path):
    """--resume on a finished run trains on, or loses results."""
    run = shutil.copytree(finished, tmp_path / "runs" / "run")
    run_grpo(tmp_path, "--resume", "runs/run")
    assert {k: v for k, v in files(run).items() if not redrawn(k)} == {k: v for k, v in files(finished).items() if not redrawn(k)}


# ------------------------------------------------------------------------------------------------------------ bad input


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
        (["--confessions-per-answer", "65"], "--confessions-per-answer 65 is more than --batch-size 64"),
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
    """A traceback, a long wait before a mistake is found, or a run folder that blocks the corrected command's name."""
    (tmp_path / "runs/taken").mkdir(parents=True)
    (tmp_path / "runs/taken/config.json").write_text("{}")
    (tmp_path / "runs/started").mkdir()
    (tmp_path / "runs/started/config.json").write_text('{"config": {}}')
    before = files(tmp_path), sorted(tmp_path.rglob("*"))
    complete = options if "--resume" in options else ["--model", POLICY, *TINY, "--name", "new", *options]
    with pytest.raises(SystemExit) as error:
        run_grpo(tmp_path, *complete)
    assert error.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert message in line
    assert (files(tmp_path), sorted(tmp_path.rglob("*"))) == before


def test_a_run_without_verdicts_ends_at_its_first_step(tmp_path, monkeypatch, capsys):
    """A judge that never judges leaves the answers without reward, and the run goes on as confession training."""
    monkeypatch.setattr(rewards, "framed_ids", lambda *_: None)
    with pytest.raises(SystemExit):
        run_grpo(tmp_path, *RUN, "--answer-reward", "rewards.judge_reward")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert "no verdict on 2 of the 2 answers of the first step" in line and "breaks the frame" in line and "--judge" in line
    assert not (tmp_path / "runs/run/metrics.jsonl").exists()


def test_help_names_every_option(tmp_path, capsys):
    """--help breaks on a help text, or hides an option."""
    with pytest.raises(SystemExit) as error:
        run_grpo(tmp_path, "--help")
    shown = capsys.readouterr().out
    assert error.value.code == 0
    assert all(f"--{field.name.replace('_', '-')}" in shown for field in dataclasses.fields(grpo.Config))


# --------------------------------------------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path):
    """Work is lost, the exit code says that all is well, or a traceback covers the screen."""
    endless = ["--steps", "1000", "--checkpoint-every", "1000"]
    command = [sys.executable, "-u", grpo.__file__, "--model", POLICY, *TINY, *endless, "--name", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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


# ---------------------------------------------------------------------------------------------- other models, end to end


def test_whole_path_with_other_architectures(tmp_path, tiny):
    """Sampling, judging, scoring, updating, saving or resuming works with the embedded models alone."""
    model, tokenizer = tiny
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    large = "--lora-rank 0 --dtype float32 --lr 0.001 --gradient-checkpointing true --kl-coef 0.1 --updates-per-batch 2".split()
    run_grpo(tmp_path, "--model", str(folder), "--judge", str(folder), *TINY, *REWARD, *large, "--name", "run")
    run = tmp_path / "runs" / "run"
    logged = rows(run / "metrics.jsonl")
    assert [row["step"] for row in logged] == [1, 2]
    assert all(row["grad_norm"] > 0 for row in logged)
    before = files(run)
    shutil.rmtree(run_folder.checkpoint(run, 2))
    for path in run.glob("evals/step_0002.*"):
        path.unlink()
    run_grpo(tmp_path, "--resume", "runs/run")
    assert [name for name, content in files(run).items() if content != before[name] and not redrawn(name)] == []
    trained, _ = models.load(str(run_folder.checkpoint(run, 2)), torch.device("cpu"))
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), model.parameters()))
