"""Default against forced_count confessions over a list of models: what scale_sweep.py and stage_ladder.py share.

The models answer and confess on the same held-out prompts, each under both confession prompts; no judge is needed. One
model is in memory at a time. Every evaluation is saved when it is finished, in OUT/evals/MODEL_CRC32_VARIANT_n64.json with
its rollouts beside it, and is not computed again (remove the file if a model has changed under the same name).
"""

import gc
import re
import time
import zlib
from pathlib import Path

import torch

import figures
import models
import run_folder
import word_count
from cli import UserError
from confession_schema import VARIANTS
from evaluate import brief, differences, evaluate, format_table, metrics, save, stored
from grpo import EMBEDDED, LARGE
from rollout import Rollout, Sampling

Cells = dict[str, dict[str, list[Rollout]]]  # {label of the model: {variant: rollouts}}


def cell_path(out: Path, model: str, variant: str, n: int) -> Path:
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", model)[-80:].strip("_.")
    return out / "evals" / f"{readable}_{zlib.crc32(model.encode()):08x}_{variant}_n{n}.json"  # a/b is not a_b


def settings(model: str) -> dict:
    """Sampling options and dtype for a model: a checkpoint's are those of its run."""
    folder = Path(model).parent
    if folder.name == "checkpoints":
        return run_folder.read_config(folder.parent)
    return EMBEDDED if models.is_embedded(model) else LARGE


def saved_models(out: Path) -> dict[str, str]:
    """The models that OUT was last made of, for drawing it again."""
    return run_folder.read_json(out / "models.json")


def compute(out: Path, names: dict[str, str], n: int, device: str, plot_only: bool) -> Cells:
    """Evaluate the models that are not evaluated yet; names: {label: Hugging Face name or folder}."""
    if n < 1:
        raise UserError(f"--n {n} is out of range: at least 1")
    paths = {(label, v): cell_path(out, model, v, n) for label, model in names.items() for v in VARIANTS}
    cells = {key: stored(path, word_count) for key, path in paths.items()}
    missing = [key for key, rollouts in cells.items() if rollouts is None]
    if missing and plot_only:
        raise UserError(f"{len(missing)} of {len(paths)} evaluations are missing, first {paths[missing[0]]}: drop --plot-only")
    loaded = None
    for label, variant in missing:
        start = time.perf_counter()
        preset = settings(names[label])
        if loaded != label:
            model = tokenizer = None
            gc.collect()  # the one before is gone from memory before the next one comes
            torch.cuda.empty_cache()
            model, tokenizer = models.load(names[label], models.device_of(device), preset["dtype"])
            loaded = label
        rollouts = evaluate(model, tokenizer, None, word_count, Sampling.of(preset), n, variant=variant)
        cells[label, variant] = rollouts
        found = save(paths[label, variant], rollouts, word_count)
        parts = dict(claims="claim_match", over_claims="over_claim", counts="count_rate", right="objectives_met", parsed="parsed")
        print(f"{label:16} {variant:13} | {brief(found, **parts)}, {time.perf_counter() - start:.1f}s", flush=True)
    if not plot_only:
        run_folder.write_json(out / "models.json", names)
    return {label: {v: cells[label, v] for v in VARIANTS} for label in names}


def report(out: Path, figure: str, title: str, names: dict[str, str], cells: Cells) -> None:
    """Table, paired differences and figure, from rollouts alone."""
    found = {label: {v: metrics(rollouts, word_count) for v, rollouts in by.items()} for label, by in cells.items()}
    lines = []
    for v in VARIANTS:
        lines += [f"\n{v}", format_table({label: by[v] for label, by in found.items()})]
    first, *others = cells
    compared = {
        f"{label} - {first}": differences(cells[first]["default"], cells[label]["default"], word_count) for label in others
    }
    if others:
        lines += ["\ndefault, paired differences on the same prompts", format_table(compared)]
    compared = {label: differences(by["default"], by["forced_count"], word_count) for label, by in cells.items()}
    lines += ["\nforced_count - default, paired on the same prompts", format_table(compared)]
    run_folder.write_text(out / "table.txt", "\n".join(lines).strip() + "\n")
    print("\n".join(lines))
    print(f"figure: {figures.claims(out, figure, title, found, names)}")
