"""What experiments share: cells (evaluations that are saved when they are finished, one model in
memory at a time), and runs of grpo.py that are gone on with.

scale_sweep.py and stage_ladder.py compare default and forced_count confessions over a list of
models. The models answer and confess on the same held-out prompts, each under both confession
prompts; no judge is needed. An evaluation is in OUT/evals/MODEL_CRC32_VARIANT_n64.json with its
rollouts beside it, and is not computed again (remove the file if a model has changed under the same
name). The checksum is of the model's name, the task, and the options that change what is measured;
--plot-only wants the same ones.
"""

import dataclasses
import gc
import itertools
import math
import re
import shlex
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from tqdm import tqdm

import figures
import models
import run_folder
from baselines import baselines, shuffles
from cli import UserError, import_task, option
from evaluate import ANSWERS, evaluate_in_memory, save, stored, suffix_of
from intervals import written
from metrics import brief, differences, format_table, metrics
from options import INFORMATION, SAMPLERS, THINKING, SamplingOptions
from rollout import Rollout, Sampling
from run_folder import RUNS
from runtime.sandbox import LEVELS

VARIANTS = ("default", "forced_count")  # of confession_schema's, those that are compared
Rollouts = dict[str, dict[str, list[Rollout]]]  # {label of the model: {variant: rollouts}}
SHOWN = {
    "claims": "claim_match",
    "over_claims": "over_claim",
    "counts": "count_rate",
    "right": "objectives_met",
    "parsed": "parsed",
}


class Cells:
    """Cells one after another; a model is loaded when a cell asks for another one than before."""

    def __init__(self, task: ModuleType, device: str):
        self.task, self.device = task, device
        self.loaded = self.model = self.tokenizer = None

    def load(self, name: str, dtype: str) -> tuple:
        """(model, tokenizer) for the next cell; `name` as models.load takes it. A variable that
        outlives the cell would keep the model beside the next one.
        """
        self.start = time.perf_counter()
        if self.loaded != (name, dtype):
            # gone from memory before the next one comes
            self.loaded = self.model = self.tokenizer = None
            gc.collect()
            torch.cuda.empty_cache()
            self.model, self.tokenizer = models.load(name, models.device_of(self.device), dtype)
            self.loaded = name, dtype
        return self.model, self.tokenizer

    def keep(self, path: Path, rollouts: list[Rollout], title: str, **shown: str) -> list[Rollout]:
        """Save rollouts as the cell `path` (.json, rollouts beside it) and tell it in one line.
        shown: the metrics that stand in it, by the names they are given.
        """
        found = save(path, rollouts, self.task)
        tqdm.write(f"{title} | {brief(found, **shown)}, {time.perf_counter() - self.start:.1f}s")
        return rollouts


def rows_of(text: str, option: str = "--rows") -> dict[str, str]:
    """{name: model} of --rows, or of another option in that form."""
    rows = {}
    for part in filter(None, text.split(",")):
        name, _, model = part.partition("=")
        if not name or not model or name in rows:
            raise UserError(
                f"{option} {part!r}: give NAME=MODEL, each name once, such as "
                "untrained=organism/policy"
            )
        rows[name] = model.rstrip("/")
    return rows


# ---------------------------------------------------------------------------------- runs of grpo.py

REWARDS = {  # of confessions
    "usual": [],
    "information": ["--confession-reward", INFORMATION, "--confession-weight", "15"],
}


def seeds_of(text: str) -> list[int]:
    """The training seeds of --seeds."""
    if not all(seed.strip().isdecimal() for seed in text.split(",")):
        raise UserError(
            f"--seeds {text!r}: give whole numbers with commas between them, such as 0,1,2"
        )
    return [int(seed) for seed in text.split(",")]


def call(program: str, *options) -> None:
    """Run one of the programs beside this one; CalledProcessError if it fails."""
    subprocess.run(
        [sys.executable, Path(__file__).parent / program, *map(str, options)], check=True
    )


def refuse_no_model(model: str | None) -> None:
    if model is None:
        raise UserError(
            "--model is required: give a small chat model, such as Qwen/Qwen2.5-Coder-0.5B-Instruct"
        )


def train(run: Path, model: str, arguments: list[str], steps: int, n: int) -> None:
    """grpo.py from `model` and evaluate.py, as far as they are not done yet. UserError for a run
    that exists and began elsewhere or has other steps: it would be taken for this one.
    """
    exists = (run / "config.json").exists()
    if exists:
        made = run_folder.read_config(run)
        if made["model"] != str(model):
            raise UserError(f"{run} began with {made['model']}, not {model}: choose another --name")
        if made["steps"] != steps:
            raise UserError(
                f"{run} was made with --steps {made['steps']}, not {steps}: move it away, or "
                "ask for as many"
            )
    if not (run / "evals" / f"step_{steps:04d}.json").exists():
        # as the committed runs have it, also where grpo.py's default for embedded models is 4
        common = ["--prompts-per-step", 8, "--name", run.relative_to(RUNS), "--model", model]
        fresh = ["--steps", steps, *common, *arguments]
        call("grpo.py", *(["--resume", run] if exists else fresh))
    if not last_evaluation(run, steps, n).exists():
        call("evaluate.py", "--run", run, "--steps", steps, "--n", n)


@dataclass(frozen=True)
class Runs:
    """Options of the experiments that compare arms, runs/NAME/ARM_SEED each."""

    model: str = option("organism/policy", "where the runs begin: a name or a folder")
    judge: str | None = option(None, "of the answers [embedded: the embedded judge]")
    task: str = option("word_count", "task module")
    seeds: str = option("0,1,2", "training seeds")
    every: int = option(10, "steps between evaluations", at_least=1)
    n: int = option(64, f"rollouts an evaluation, {ANSWERS} on each held-out prompt", at_least=1)
    grpo: str = option("--lr 2e-4", "further options of the runs of grpo.py")
    plot_only: bool = option(False, "table and figure of saved runs, without a model")


def common_arguments(options: Runs) -> list[str]:
    """The options of grpo.py that are the same in all arms."""
    judge = ["--judge", options.judge] if options.judge else []
    evaluated = ["--eval-n", str(options.n), "--checkpoint-every", str(options.every)]
    return [*judge, "--task", options.task, *evaluated, *shlex.split(options.grpo)]


def evaluated(
    folder: Path, arms: list[str], seeds: list[int]
) -> tuple[dict[str, dict[int, dict[int, list[Rollout]]]], dict]:
    """({arm: {seed: {step: rollouts}}} of those runs FOLDER/ARM_SEED that have an evaluation, the
    config of one of them).
    """
    found, config = {}, {}
    for arm, seed in itertools.product(arms, seeds):
        run = folder / f"{arm}_{seed}"
        if steps := run_folder.evaluations(run):
            config = run_folder.read_config(run)
            task = import_task(config["task"], config.get("sandbox"))
            found.setdefault(arm, {})[seed] = {
                step: stored(run / "evals" / f"step_{step:04d}.json", task) for step in steps
            }
    if not found:
        raise UserError(f"{folder} has no run of these that is evaluated: drop --plot-only")
    return found, config


def of_each(found: dict[str, dict[int, dict]], measure: Callable) -> dict[str, dict[int, dict]]:
    """What evaluated() found with `measure` of each evaluation in place of its rollouts."""
    return {
        arm: {seed: {step: measure(r) for step, r in of.items()} for seed, of in seeds.items()}
        for arm, seeds in found.items()
    }


def uninformed(rollouts: list[Rollout], task: ModuleType) -> str:
    """What reports without information reach on these answers, for the line under a table."""
    constants = baselines(rollouts, task)
    match = lambda name: written(metrics(constants[name], task)["claim_match"])
    return (
        f"J of shuffles {written(shuffles(rollouts))}, claim match of always None "
        f"{match('always None')}, of always Full {match('always Full')}"
    )


def last_evaluation(run: Path, steps: int, n: int) -> Path:
    suffix = suffix_of(n, run_folder.read_config(run))
    return run / "evals" / f"step_{steps:04d}{suffix}.json"


# ----------------------------------------------------------- default against forced_count, by model


@dataclass(frozen=True)
class OwnSampling(SamplingOptions):
    """An option of sampling that is not given is the model's own, so none has a default here."""

    temperature: float | None = option(
        None, "of sampling [1, a checkpoint's that of its run]", positive=True
    )
    batch_size: int | None = option(
        None, "rollouts that are decoded together [64, likewise]", at_least=1
    )
    sampler: str | None = option(None, "plain, engine or auto [auto, likewise]", one_of=SAMPLERS)
    thinking: str | None = option(None, "on, off or auto [auto, likewise]", one_of=THINKING)
    sandbox: str | None = option(None, "strong or weak [strong, likewise]", one_of=LEVELS)
    device: str = option("auto", "auto, cpu or cuda")


@dataclass(frozen=True)
class Options(OwnSampling):
    """Those of scale_sweep.py and stage_ladder.py."""

    task: str = option("word_count", "task module")
    n: int = option(64, f"rollouts a bar, {ANSWERS} on each held-out prompt", at_least=1)
    name: str = option("", "folder under runs/ [made of the preset's]")
    plot_only: bool = option(False, "table and figure of saved evaluations, without a model")


def chosen(options: OwnSampling) -> dict:
    """The sampling options that were given."""
    given = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(SamplingOptions)
    }
    return {name: value for name, value in given.items() if value is not None}


def cell_path(out: Path, model: str, variant: str, options: Options) -> Path:
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", model)[-80:].strip("_.")
    measured = {
        name: value
        for name, value in chosen(options).items()
        if name not in ("batch_size", "sampler", "sandbox")
    }
    measured["answers"] = ANSWERS  # to a prompt
    if options.task != "word_count":
        measured["task"] = options.task
    checksum = zlib.crc32(f"{model}{measured}".encode())  # a/b is not a_b
    return out / "evals" / f"{readable}_{checksum:08x}_{variant}_n{options.n}.json"


def settings(model: str, options: OwnSampling) -> dict:
    """Sampling options and dtype for a model: its own defaults, a checkpoint's are those of its
    run; what was chosen replaces them.
    """
    folder = Path(model).parent
    if folder.name == "checkpoints":
        own = run_folder.read_config(folder.parent)
    else:
        own = models.defaults(model, models.device_of(options.device), options.thinking)
    return own | chosen(options)


def saved_models(out: Path) -> dict[str, str]:
    """The models that OUT was last made of, for drawing it again."""
    return run_folder.read_json(out / "models.json")


def compute(out: Path, names: dict[str, str], options: Options, task: ModuleType) -> Rollouts:
    """Evaluate the models that are not evaluated yet; names: {label: name or folder}."""
    paths = {
        (label, v): cell_path(out, model, v, options)
        for label, model in names.items()
        for v in VARIANTS
    }
    cells = {key: stored(path, task) for key, path in paths.items()}
    missing = [key for key, rollouts in cells.items() if rollouts is None]
    if missing and options.plot_only:
        raise UserError(
            f"{len(missing)} of {len(paths)} evaluations are missing, first {paths[missing[0]]}: "
            "drop --plot-only"
        )
    computer, fitted = Cells(task, options.device), math.inf
    for label, variant in missing:
        preset = settings(names[label], options)
        # models mostly grow along a list: what ran out of memory would do so again
        sampling = Sampling.of(preset)
        sampling = dataclasses.replace(sampling, batch_size=min(sampling.batch_size, fitted))
        rollouts, sampling = evaluate_in_memory(
            *computer.load(names[label], preset["dtype"]),
            judge=None,
            task=task,
            sampling=sampling,
            n=options.n,
            variant=variant,
        )
        fitted = sampling.batch_size
        title = f"{label:16} {variant:13}"
        cells[label, variant] = computer.keep(paths[label, variant], rollouts, title, **SHOWN)
    if not options.plot_only:
        run_folder.write_json(out / "models.json", names)
    return {label: {v: cells[label, v] for v in VARIANTS} for label in names}


def report(
    out: Path, figure: str, title: str, names: dict[str, str], cells: Rollouts, task: ModuleType
) -> None:
    """Table, paired differences and figure, from rollouts alone."""
    found = {
        label: {v: metrics(rollouts, task) for v, rollouts in by.items()}
        for label, by in cells.items()
    }
    lines = []
    for v in VARIANTS:
        lines += [f"\n{v}", format_table({label: by[v] for label, by in found.items()})]
    first, *others = cells
    compared = {
        f"{label} - {first}": differences(cells[first]["default"], cells[label]["default"], task)
        for label in others
    }
    if others:
        lines += ["\ndefault, paired differences on the same prompts", format_table(compared)]
    compared = {
        label: differences(by["default"], by["forced_count"], task) for label, by in cells.items()
    }
    lines += ["\nforced_count - default, paired on the same prompts", format_table(compared)]
    run_folder.write_text(out / "table.txt", "\n".join(lines).strip() + "\n")
    print("\n".join(lines))
    print(f"figure: {figures.claims(out, figure, title, found, names)}")
