"""What whole runs of the program leave behind, and that a resumed run repeats an uninterrupted one
to the byte. The models' words do not matter here.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import grpo
import models
import run_folder
from tasks import word_count
from tiny_runs import POLICY, REWARD, RUN, TINY, files, redrawn, rows, run_grpo


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The run folder of two uninterrupted steps. Tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    run_grpo(folder, *RUN)
    return folder / "runs" / "run"


# ----------------------------------------------------------------------------------- the run folder


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
    assert figures and all(
        (finished / name).with_suffix(s).exists() for name in figures for s in (".png", ".json")
    )


def test_config_holds_every_value_used(finished):
    """A run cannot be told from another one, or resumes with other values than it began with."""
    data = json.loads((finished / "config.json").read_text())
    config = data["config"]
    assert set(config) == {field.name for field in dataclasses.fields(grpo.Config)}
    assert {name for name, value in config.items() if value is None} == {"resume"}
    chosen = dict(
        model=POLICY,
        name="run",
        steps=2,
        prompts_per_step=1,
        group_size=2,
        checkpoint_every=1,
        eval_n=2,
    )
    chosen |= dict(max_answer_tokens=8, max_confession_tokens=8, temperature=3.0)
    chosen |= dict(answer_reward=REWARD[1], confession_reward=REWARD[3], truncated_reward="judge")
    filled_in = models.EMBEDDED | chosen
    assert {name: config[name] for name in filled_in} == filled_in
    assert {"torch", "transformers", "safetensors", "numpy", "python"} <= set(data["versions"])
    assert set(data["git"]) == {"commit", "dirty"}
    assert set(data["prompts"]) == {"x", "xc", "judge"} and all(
        len(p["sha256"]) == 64 for p in data["prompts"].values()
    )


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
            assert {"reward", "advantage", "finish"} <= set(row["answer"]) and "reply" in row[
                "verdict"
            ]
            assert (
                row["answer"]["reward"]
                == row["confession"]["reward"]
                == sum(row["token_ids"]) % 1_009 / 1_009
            )
        assert (
            saved[0]["answer"]["advantage"] == pytest.approx(-saved[1]["answer"]["advantage"]) != 0
        )
        loaded = run_folder.load_rollouts(path, word_count)
        assert [json.loads(json.dumps(rollout.to_json())) for rollout in loaded] == saved


def test_checkpoints_load_with_transformers_alone(finished):
    """A checkpoint is useful only to this program, holds a pickle, or is not the trained model."""
    assert {path.suffix for path in finished.glob("checkpoints/*/*")} == {
        ".safetensors",
        ".json",
        ".jinja",
    }
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


# ----------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("crash_at", [1, 2])
def test_resumed_run_repeats_an_uninterrupted_one(finished, tmp_path, monkeypatch, crash_at):
    """Optimizer state, noise or prompts are not restored,
    or a step that was cut short is recorded twice.
    """
    format_step = grpo.progress.format_step

    # at the worst moment: the step is recorded, and its checkpoint is not saved yet
    def crash(row, seconds):
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
    assert {k: v for k, v in files(run).items() if not redrawn(k)} == {
        k: v for k, v in files(finished).items() if not redrawn(k)
    }


# ------------------------------------------------------------------------- other models, end to end


def test_whole_path_with_other_architectures(tmp_path, tiny):
    """Sampling, judging, scoring, updating,
    saving or resuming works with the embedded models alone.
    """
    model, tokenizer = tiny
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    large = (
        "--lora-rank 0 --dtype float32 --lr 0.001 --gradient-checkpointing true --kl-coef 0.1 "
        "--updates-per-batch 2"
    ).split()
    run_grpo(
        tmp_path,
        "--model",
        str(folder),
        "--judge",
        str(folder),
        *TINY,
        *REWARD,
        *large,
        "--name",
        "run",
    )
    run = tmp_path / "runs" / "run"
    logged = rows(run / "metrics.jsonl")
    assert [row["step"] for row in logged] == [1, 2]
    assert all(row["grad_norm"] > 0 for row in logged)
    before = files(run)
    shutil.rmtree(run_folder.checkpoint(run, 2))
    for path in run.glob("evals/step_0002.*"):
        path.unlink()
    run_grpo(tmp_path, "--resume", "runs/run")
    assert [
        name
        for name, content in files(run).items()
        if content != before[name] and not redrawn(name)
    ] == []
    trained, _ = models.load(str(run_folder.checkpoint(run, 2)), torch.device("cpu"))
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), model.parameters()))
