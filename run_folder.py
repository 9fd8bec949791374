"""The run folder: everything that a run leaves behind, and what resuming it needs.

    runs/NAME/config.json              every value used, versions, git commit and dirty flag, prompt hashes
    runs/NAME/metrics.jsonl            a line a step: rates, losses, gradients; the same again for the same seed
    runs/NAME/timing.jsonl             a line a step: seconds by phase, tokens, memory
    runs/NAME/rollouts/step_0042.jsonl all rollouts of a step: six parts, truth, report, verdict, rewards, advantages
    runs/NAME/checkpoints/step_0025/   Hugging Face layout (safetensors) and optimizer.safetensors
    runs/NAME/evals/step_0025.json     metrics with intervals; step_0025.jsonl holds their rollouts
    runs/NAME/evals/stress_soft_step_0025_n32.json   the same under a system prompt (stress_test.py)
    runs/NAME/*.png, *.json            figures, each with the numbers it shows
    runs/NAME/transcripts.html         all of it for a browser, if transcripts.py was asked

Files appear whole: they are written under a temporary name and renamed.
"""

import dataclasses
import hashlib
import importlib
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cli import UserError
from confession_schema import ConfessionReport, ParseFailure
from rewards import Verdict
from rollout import Rollout, Span

RUNS = Path("runs")


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, data) -> None:
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: is {path.parent} a run folder?") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore or remove it") from None


def refuse_existing(run: Path) -> None:
    if (run / "config.json").exists():
        raise UserError(f"{run} already holds a run: continue it with --resume {run}, or choose another --name")


def create(run: Path, config, prompts: dict[str, str]) -> None:
    """Make the folder of a new run and write its config.json."""
    refuse_existing(run)
    write_json(run / "config.json", {"config": dataclasses.asdict(config), **provenance(prompts)})


def read_config(run: Path) -> dict:
    """The options of a run."""
    data = read_json(run / "config.json")
    if "config" not in data:
        raise UserError(f"{run} is no run folder: its config.json is not one of grpo.py's")
    return data["config"]


def newest() -> Path:
    """The run that was started last."""
    configs = sorted(RUNS.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise UserError(f"there is no run under {RUNS}/: start one with python grpo.py --steps 100")
    return configs[-1].parent


def provenance(prompts: dict[str, str]) -> dict:
    """Versions, git state and the hash of every prompt text."""
    git = lambda *args: subprocess.run(["git", *args], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    packages = ("torch", "transformers", "safetensors", "numpy")
    return {
        "versions": {"python": platform.python_version()} | {p: importlib.import_module(p).__version__ for p in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "git": {"commit": git("rev-parse", "HEAD") or None, "dirty": bool(git("status", "--porcelain"))},
        "prompts": {k: {"sha256": hashlib.sha256(v.encode()).hexdigest(), "text": v} for k, v in prompts.items()},
    }


# ----------------------------------------------------------------------------------------- metrics and rollouts


def append_row(path: Path, row: dict) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_rows(path: Path) -> list[dict]:
    """The lines of metrics.jsonl or timing.jsonl, in order of step."""
    rows = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path} line {i} is not valid JSON ({error}): remove that line") from None
    return rows


def forget_after(run: Path, step: int) -> None:
    """Drop what was recorded after a step, so that a resumed run records it once."""
    for path in (run / "metrics.jsonl", run / "timing.jsonl"):
        kept = [row for row in read_rows(path) if row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    for path in (run / "rollouts").glob("step_*.jsonl"):
        if int(path.stem.split("_")[1]) > step:
            path.unlink()


def save_rollouts(path: Path, rollouts: list[Rollout]) -> None:
    write_text(path, "".join(json.dumps(rollout.to_json()) + "\n" for rollout in rollouts))


def load_rollouts(path: Path, task) -> list[Rollout]:
    """Rollouts as saved; truth is computed again from y, and logprobs are empty."""
    rollouts = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            data = json.loads(line)
            for span in ("answer", "confession"):
                data[span] = Span(**data[span], logprobs=[])
            if data["report"]:
                report = data["report"]
                failed = "reason" in report
                data["report"] = ParseFailure(**report) if failed else ConfessionReport(
                    tuple(report["claims"]), tuple(report["uncertainties"]), report["grade"]
                )  # fmt: skip
            data["verdict"] = Verdict(**data["verdict"]) if data["verdict"] else None
            data["truth"] = task.truth(data["x"], data["y"])
            rollouts.append(Rollout(**data))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} line {i} is not a rollout ({error}): remove the file and evaluate again") from None
    return rollouts


# --------------------------------------------------------------------------------------------------- checkpoints


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:04d}"


def checkpoint_steps(run: Path) -> list[int]:
    """Steps with a whole checkpoint, in order."""
    folders = (run / "checkpoints").glob("step_*")
    return sorted(int(f.name.split("_")[1]) for f in folders if f.name.split("_")[1].isdigit())


def save_checkpoint(run: Path, step: int, model, tokenizer, optimizer: torch.optim.Optimizer) -> None:
    """Model, tokenizer and optimizer state; the folder appears under its name only when all of it is on disk."""
    final = checkpoint(run, step)
    temporary = final.with_name(f"tmp_{final.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    state = optimizer.state_dict()["state"]
    tensors = {f"{i}.{name}": value.contiguous() for i, values in state.items() for name, value in values.items()}
    save_file(tensors, temporary / "optimizer.safetensors")
    for path in temporary.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(final, ignore_errors=True)
    temporary.replace(final)


def load_optimizer(run: Path, step: int, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved state of a checkpoint into a fresh optimizer over the same parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(checkpoint(run, step) / "optimizer.safetensors").items():
        i, key = name.split(".")
        state.setdefault(int(i), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
