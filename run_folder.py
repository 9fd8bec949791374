"""The run folder: everything that a run leaves behind, and what resuming it needs.

    runs/NAME/config.json              every value used, versions, git commit and dirty flag,
                                       prompt hashes
    runs/NAME/metrics.jsonl            a line a step: rates, losses, gradients; the same again for
                                       the same seed
    runs/NAME/timing.jsonl             a line a step: seconds by phase, tokens, memory
    runs/NAME/events/                  both again for TensorBoard, if that is installed
    runs/NAME/rollouts/step_0042.jsonl all rollouts of a step: six parts, truth, report, verdict,
                                       rewards, advantages
    runs/NAME/rollouts/nonfinite_step_0042.jsonl   those of a step that was skipped, with the
                                                   sampler's log-probabilities
    runs/NAME/checkpoints/step_0025/   Hugging Face layout (safetensors) and optimizer.safetensors
    runs/NAME/evals/step_0025.json     metrics with intervals; step_0025.jsonl holds their rollouts
    runs/NAME/evals/stress_soft_step_0025_n32.json   the same under a system prompt (stress_test.py)
    runs/NAME/*.png, *.json            figures, each with the numbers it shows
    runs/NAME/transcripts.html         all of it for a browser, if transcripts.py was asked
    runs/NAME/lock                     the process that trains here, or did last

Files appear whole: they are written under a temporary name, brought to the disk and renamed. The
logs alone grow by lines, and a last line that was cut off does not count. So a run may be killed
at any moment: --resume goes on from the newest checkpoint and drops what was recorded after it.
No random state has to be kept, as (seed, step) determines the prompts and the noise of a step.
Nothing is ever deleted to save space; a step of 64 rollouts takes 0.3 to 0.4 MB.
"""

import dataclasses
import errno
import fcntl
import hashlib
import importlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from cli import UserError
from rollout import Rollout
from runtime import distributed

RUNS = Path("runs")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing. The temporary name is the process's own:
    two programs may draw the same figure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file to the disk, or a folder's names:
    after a power cut a rename is lost without the latter.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not sync folders
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, data) -> None:
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: is {path.parent} a run folder?") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore or remove it") from None


def refuse_existing(run: Path) -> None:
    if (run / "config.json").exists():
        raise UserError(
            f"{run} already holds a run: continue it with --resume {run}, or choose another --name"
        )


@distributed.first_rank
def new_run(name: str | None) -> Path:
    """The folder of a new run, by the date and time if it has no name; UserError
    if it holds a run.
    """
    run = RUNS / (name or datetime.now().strftime("%Y%m%d-%H%M%S"))
    refuse_existing(run)
    return run


@distributed.first_rank
def exists(path: Path) -> bool:
    return path.exists()


def evaluations(run: Path) -> dict[int, dict]:
    """{step: metrics} of the run's own evaluations."""
    return {
        int(path.stem[5:]): read_json(path)
        for path in sorted((run / "evals").glob("step_????.json"))
    }


@contextmanager
def locked(run: Path):
    """Hold a run folder while training in it.
    The kernel lets go of the lock when the process ends, in whatever way.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{run} is in use by process {file.read()}: wait for it to end, or choose "
                "another --name"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            if not (run / "config.json").exists():  # refused before it began
                with suppress(OSError):  # the folder may hold something else
                    (run / "lock").unlink()
                    run.rmdir()


def in_use(run: Path) -> bool:
    """Whether a process of this machine trains in a run folder."""
    try:
        with (run / "lock").open() as file:
            # shared, so that two who look see no trainer in each other
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@distributed.first_rank
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


def resumed_config(given, program: str):
    """The config of the run that `given.resume` names; UserError if other options were given, or if
    another program or version made it.
    """
    saved = read_config(Path(given.resume))
    if given != type(given)(resume=given.resume):
        raise UserError(
            "--resume takes every other option from the run's config.json: drop the other options"
        )
    if set(saved) != {field.name for field in dataclasses.fields(given)}:
        raise UserError(
            f"{given.resume} was made by another program or another version of {program}: resume "
            "it with the commit in its config.json"
        )
    return type(given)(**saved)


def newest() -> Path:
    """The run that was started last."""
    configs = sorted(RUNS.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise UserError(f"there is no run under {RUNS}/: start one with python grpo.py --steps 100")
    return configs[-1].parent


def provenance(prompts: dict[str, str]) -> dict:
    """Versions, git state and the hash of every prompt text."""
    git = lambda *args: subprocess.run(
        ["git", *args], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    packages = ("torch", "transformers", "safetensors", "numpy")
    return {
        "versions": {"python": platform.python_version()}
        | {p: importlib.import_module(p).__version__ for p in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "git": {
            "commit": git("rev-parse", "HEAD") or None,
            "dirty": bool(git("status", "--porcelain")),
        },
        "prompts": {
            k: {"sha256": hashlib.sha256(v.encode()).hexdigest(), "text": v}
            for k, v in prompts.items()
        },
    }


# ----------------------------------------------------------------------------- metrics and rollouts


def append_row(path: Path, row: dict) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())  # before the checkpoint that stands on it


def read_rows(path: Path) -> list[dict]:
    """The lines of metrics.jsonl or timing.jsonl, in order of step;
    not a last one that a killed process left unfinished.
    """
    rows = []
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for i, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if type(row["step"]) is not int:
                raise ValueError("no step")
            rows.append(row)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if i < len(lines):
                raise UserError(
                    f"{path} line {i} is not a step's row ({error}): remove that line"
                ) from None
    return rows


@distributed.first_rank
def record_step(run: Path, row: dict, timing: dict, rollouts: list[Rollout]) -> None:
    """Write down a step; its line of metrics.jsonl says that its rollouts are there."""
    save_rollouts(run / "rollouts" / f"step_{row['step']:04d}.jsonl", rollouts)
    append_row(run / "metrics.jsonl", row)
    append_row(run / "timing.jsonl", timing)


@distributed.first_rank
def forget_after(run: Path, step: int) -> None:
    """Drop what was recorded after a step and what a killed process left half-written, so that
    a resumed run records it once.
    """
    for path in (run / "metrics.jsonl", run / "timing.jsonl"):
        if path.exists():
            kept = [row for row in read_rows(path) if row["step"] <= step]
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    for path in [*run.glob("rollouts/*step_*.jsonl"), *run.glob("evals/*.json*")]:
        if max(map(int, re.findall(r"(?:step|by)_(\d+)", path.name)), default=0) > step:
            path.unlink()
    for folder in run.glob("checkpoints/tmp_*"):
        shutil.rmtree(folder)
    for path in run.rglob("*.tmp"):
        owner = path.name.split(".")[-2]
        if owner.isdecimal() and not _is_another_process(int(owner)):
            path.unlink()


def _is_another_process(pid: int) -> bool:
    """Such as an evaluate.py at work beside the run, whose temporary files stay."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid != os.getpid()


def save_rollouts(path: Path, rollouts: list[Rollout]) -> None:
    write_text(path, "".join(json.dumps(rollout.to_json()) + "\n" for rollout in rollouts))


@distributed.first_rank
def save_nonfinite(run: Path, step: int, rollouts: list[Rollout]) -> Path:
    """Keep the batch of a step whose loss is not finite, with all that the loss was made of."""
    readable = lambda v: v if math.isfinite(v) else str(v)  # JSON has neither NaN nor infinity
    lines = []
    for rollout in rollouts:
        data = rollout.to_json()
        for name, span in rollout.spans.items():
            data[name] |= {
                "logprobs": [readable(v) for v in span.logprobs],
                "advantage": readable(span.advantage),
            }
        lines.append(json.dumps(data, allow_nan=False) + "\n")
    path = run / "rollouts" / f"nonfinite_step_{step:04d}.jsonl"
    write_text(path, "".join(lines))
    return path


@distributed.first_rank
def stop_after_three_skipped(run: Path) -> None:
    if [row["skipped"] for row in read_rows(run / "metrics.jsonl")[-3:]] == [True] * 3:
        raise UserError(
            "loss or gradient was not finite in three steps in a row: their batches are "
            f"{run}/rollouts/nonfinite_*. "
            "Start a new run with a lower --lr, or from a checkpoint: --model "
            f"{checkpoint(run, checkpoint_steps(run)[-1])}"
        )


def load_rollouts(path: Path, task) -> list[Rollout]:
    """Rollouts as saved; truth is computed again from y, and logprobs are empty."""
    if not path.exists():
        raise UserError(
            f"{path} does not exist: only the metrics beside it were kept; evaluate again"
        )
    rollouts = []
    for i, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            rollouts.append(Rollout.from_json(json.loads(line), task))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path} line {i} is not a rollout ({error}): remove the file and evaluate again"
            ) from None
    return rollouts


# -------------------------------------------------------------------------------------- checkpoints


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:04d}"


@distributed.first_rank
def checkpoint_steps(run: Path) -> list[int]:
    """Steps with a whole checkpoint, in order."""
    folders = (run / "checkpoints").glob("step_*")
    return sorted(int(f.name.split("_")[1]) for f in folders if f.name.split("_")[1].isdigit())


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimizer as a checkpoint holds it;
    every rank must ask, and rank 0 alone gets what is sharded.
    """
    tensors = {}
    for i, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            value = distributed.whole(value).contiguous()
            if distributed.rank() == 0:
                tensors[f"{i}.{name}"] = value.cpu() if distributed.world() > 1 else value
    return tensors


def keep_checkpoint(run: Path, step: int, model, tokenizer, optimizer) -> None:
    """save_checkpoint(), if it is not there yet; every rank must ask."""
    if step not in checkpoint_steps(run):
        save_checkpoint(run, step, model, tokenizer, optimizer_tensors(optimizer))


@distributed.first_rank
def save_checkpoint(
    run: Path, step: int, model, tokenizer, optimizer_state: dict[str, torch.Tensor]
) -> None:
    """Model, tokenizer and optimizer state; the folder appears under its name only when all
    of it is on disk.
    """
    final = checkpoint(run, step)
    temporary = final.with_name(f"tmp_{final.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        # whose embedding is its base's: to make sure of it peft would ask the hub
        lora = hasattr(model, "peft_config")
        model.save_pretrained(temporary, **({"save_embedding_layers": False} if lora else {}))
        tokenizer.save_pretrained(temporary)
        save_file(optimizer_state, temporary / "optimizer.safetensors")
    except Exception as error:
        # safetensors and tokenizers raise their own kinds, with the system's number in the text
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(temporary)) from None
    for path in (*temporary.iterdir(), temporary):
        sync(path)
    temporary.replace(final)
    sync(final.parent)


@distributed.first_rank
def newest_checkpoint(run: Path) -> int | None:
    """The step to go on from, None before the first checkpoint. Damaged folders after it are set
    aside, and it says so.
    """
    damaged = {}
    for step in reversed(checkpoint_steps(run)):
        reason = _damage(checkpoint(run, step))
        if reason is None:
            for later, said in damaged.items():
                aside = checkpoint(run, later).with_name(f"damaged_step_{later:04d}")
                shutil.rmtree(aside, ignore_errors=True)
                checkpoint(run, later).replace(aside)
                print(f"{said}: moved to {aside}, going on from step {step}")
            return step
        damaged[step] = reason
    if damaged:
        raise UserError(
            f"no checkpoint of {run} is whole: {'; '.join(damaged.values())}. Restore one of them, "
            "or start a new run"
        )
    return None


def _damage(folder: Path) -> str | None:
    """What keeps a checkpoint from being loaded;
    a safetensors file knows its length, and has no checksum.
    """
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
        except (SafetensorError, ValueError) as error:
            return f"{path} is damaged ({error})"
    weights = {path.name for path in folder.glob("*.safetensors")}
    return (
        None
        if "optimizer.safetensors" in weights and len(weights) > 1
        else f"{folder} lacks some of its weights"
    )


def load_optimizer(run: Path, step: int, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved state of a checkpoint into a fresh optimizer over the same parameters,
    whole or sharded.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(checkpoint(run, step) / "optimizer.safetensors").items():
        i, key = name.split(".")
        state.setdefault(int(i), {})[key] = (
            distributed.shard_like(tensor, parameters[int(i)]) if tensor.ndim else tensor
        )
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
