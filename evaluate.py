"""Measure a model: n two-turn rollouts, 4 on each held-out prompt -> metrics, each with its n
and a 95% interval.

    python evaluate.py                                # all checkpoints of the newest run, n = 256
    python evaluate.py --run runs/NAME --steps 0,100  # two of them
    python evaluate.py --run runs/NAME --redraw       # the table of saved results, no model
    python evaluate.py --seeds runs/A,runs/B --n 64   # saved results, and paired differences

Checkpoints meet the same prompts with the same seeds, so the differences between them are paired.
metrics.py says what is measured.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

import cli
import models
import run_folder
from metrics import NO_CONTRAST, across_seeds, differences, format_baselines, format_table, metrics
from rewards import Judge, score_rollouts
from rollout import Rollout, Sampling, Verdict, sample_confessions, sample_rollouts
from runtime import distributed
from runtime.memory import halving

# prompts EVAL_SEED, EVAL_SEED + 1, ...: the same for every checkpoint and condition
EVAL_SEED = 1_000_000
ANSWERS = 4  # to each of them: fewer would hardly tell what a report knows beyond its prompt


def evaluate(
    model, tokenizer, judge: Judge | None, task: ModuleType, sampling: Sampling, n: int, **condition
) -> list[Rollout]:
    """n scored rollouts, ANSWERS on each held-out prompt; `condition` goes to sample_rollouts
    (systems, variant).

    Spans get the default rewards (judge, honesty), not those of a run, so evaluations compare
    across runs. Without a judge every verdict is "failed": its other metrics have no trial.
    """
    return evaluate_in_memory(model, tokenizer, judge, task, sampling, n, **condition)[0]


def evaluate_in_memory(
    model, tokenizer, judge: Judge | None, task: ModuleType, sampling: Sampling, n: int, **condition
) -> tuple[list[Rollout], Sampling]:
    """evaluate()'s rollouts, and the Sampling that fitted into memory, for the next evaluation."""
    seeds = [EVAL_SEED + i // ANSWERS for i in range(n)]
    texts, prompts = len({task.make_prompt(seed, held_out=True) for seed in seeds}), len(set(seeds))
    if texts < prompts and distributed.rank() == 0:
        print(f"note: the {prompts} prompts of this evaluation are only {texts} different texts")
    seeds = distributed.share(seeds)
    rollouts, fitted = sample_in_memory(
        model, tokenizer, task, seeds, sampling, EVAL_SEED, held_out=True, **condition
    )
    score_rollouts(
        rollouts, judge(rollouts) if judge else [Verdict("failed", "[no judge]")] * len(seeds), task
    )
    return distributed.gather(rollouts), fitted


def sample_in_memory(
    model,
    tokenizer,
    task: ModuleType,
    seeds: list[int],
    sampling: Sampling,
    sampling_seed: int,
    **condition,
) -> tuple[list[Rollout], Sampling]:
    """(rollouts, the Sampling that fitted into memory);
    smaller batches and other ranks draw other samples.
    """

    def sample(batch_size: int) -> list[Rollout]:
        generator = torch.Generator(model.device).manual_seed(
            sampling_seed + (distributed.rank() << 40)
        )
        smaller = dataclasses.replace(sampling, batch_size=batch_size)
        return sample_rollouts(model, tokenizer, task, seeds, smaller, generator, **condition)

    if not seeds:
        return [], sampling
    fewest = max(1, condition.get("confessions", 1))  # those of an answer are decoded together
    rollouts, size = halving("sampling", sample, sampling.batch_size, fewest)
    return rollouts, dataclasses.replace(sampling, batch_size=size)


def confess_again(
    model,
    tokenizer,
    rollouts: list[Rollout],
    contexts: list[list[int]],
    task,
    sampling: Sampling,
    forced=None,
):
    """Scored rollouts with the same answers and new confessions,
    each going on from its context (sample_confessions).
    """
    generator = torch.Generator(model.device).manual_seed(EVAL_SEED)
    again = sample_confessions(model, tokenizer, rollouts, contexts, sampling, generator, forced)
    score_rollouts(again, [r.verdict for r in rollouts], task)
    return again


def stored(path: Path, task: ModuleType) -> list[Rollout] | None:
    """The rollouts of a saved evaluation (.json), None if it is not there as a whole."""
    whole = path.exists() and path.with_suffix(".jsonl").exists()
    return run_folder.load_rollouts(path.with_suffix(".jsonl"), task) if whole else None


@distributed.first_rank
def save(path: Path, rollouts: list[Rollout], task: ModuleType) -> dict[str, dict]:
    """Keep an evaluation: rollouts as .jsonl, then their metrics as .json, which marks it as whole;
    returns the metrics.
    """
    estimates = metrics(rollouts, task)
    run_folder.save_rollouts(path.with_suffix(".jsonl"), rollouts)
    run_folder.write_json(path, estimates)
    return estimates


def saved_evaluations(run: Path, task: ModuleType, name: str) -> dict[int, list[Rollout]]:
    """The rollouts of a run's evaluations by step. name: of the files, with ???? for the step,
    such as step_???? or stress_jailbreak_step_????_n64.
    """
    first = name.index("?")
    paths = {
        int(p.stem[first : first + 4]): p for p in sorted((run / "evals").glob(f"{name}.json"))
    }
    if not paths:
        raise cli.UserError(f"{run} has no evals/{name}.json: evaluate its checkpoints first")
    return {
        step: run_folder.load_rollouts(path.with_suffix(".jsonl"), task)
        for step, path in paths.items()
    }


def show_table(run: Path, task: ModuleType, suffix: str = "", steps: str = "") -> None:
    """Print the table of a run's saved evaluations and keep it as table.txt; `steps`: of those."""
    rollouts = saved_evaluations(run, task, f"step_????{suffix}")
    rollouts = {step: rollouts[step] for step in chosen_steps(steps, list(rollouts), run)}
    columns = {f"step {step}": metrics(r, task) for step, r in rollouts.items()}
    if len(rollouts) > 1:
        columns["last - first"] = differences(
            rollouts[min(rollouts)], rollouts[max(rollouts)], task
        )
    last = max(rollouts)
    table = (
        f"{format_table(columns)}\n\nstep {last}, the same answers\n"
        f"{format_baselines(rollouts[last], task)}"
    )
    if columns[f"step {last}"]["claim_J_within"]["n"] == 0:
        table += f"\nnote: {NO_CONTRAST}"
    run_folder.write_text(run / f"table{suffix}.txt", table + "\n")
    print(table)


def show_seeds(runs: list[Path], task: ModuleType, name: str) -> None:
    """Table of the last common checkpoint and figure of runs that differ in their training seed;
    kept in the first one.
    """
    found = {run.name: saved_evaluations(run, task, name) for run in runs}
    if len(found) < len(runs):
        raise cli.UserError(
            f"--seeds {','.join(map(str, runs))}: every run once, and folders with "
            "names of their own"
        )
    steps = sorted(set.intersection(*map(set, found.values())))
    if not steps:
        raise cli.UserError(
            f"{', '.join(map(str, runs))} have no step of evals/{name}.json in common: "
            "evaluate them first"
        )
    seeds = {
        step: across_seeds({run: rollouts[step] for run, rollouts in found.items()}, task)
        for step in steps
    }
    table = (
        f"step {steps[-1]}, {len(runs)} seeds, paired differences on the same prompts\n"
        f"{format_table(seeds[steps[-1]])}"
    )
    stem = f"seeds_{name}".replace("_step_????", "")
    run_folder.write_text(runs[0] / f"table_{stem}.txt", table + "\n")
    print(table)
    import figures  # and matplotlib, which nothing else here needs

    print(f"figure: {figures.seeds(runs[0] / f'fig_{stem}.png', seeds, list(found))}")


@dataclass(frozen=True)
class Config:
    run: str | None = cli.option(None, "run folder whose checkpoints are evaluated [the newest]")
    n: int = cli.option(
        256, f"rollouts a checkpoint, {ANSWERS} on each held-out prompt", at_least=1
    )
    steps: str = cli.option("", "checkpoints to evaluate, such as 0,100 [all]")
    device: str = cli.option("auto", "auto, cpu or cuda")
    redraw: bool = cli.option(False, "print the table of saved evaluations, without a model")
    seeds: str = cli.option(
        "",
        "runs/A,runs/B,...: put together the saved evaluations of runs that differ in their seed",
    )
    cells: str = cli.option(
        "", "with --seeds: those of the stress test instead, such as stress_jailbreak"
    )


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        names = (options.seeds or options.run or str(run_folder.newest())).split(",")
        if len(names) > 1 and not options.seeds:
            raise cli.UserError(f"--run {options.run}: give one run; --seeds compares several")
        runs = [Path(name) for name in names]
        run, config = runs[0], run_folder.read_config(runs[0])
        task = cli.import_task(config["task"], config.get("sandbox"))
        suffix = suffix_of(options.n, config)
        if options.seeds:
            cells = f"{options.cells}_step_????_n{options.n}"
            show_seeds(runs, task, cells if options.cells else f"step_????{suffix}")
            return
        if not options.redraw:
            device = models.device_of(options.device)
            judge = Judge(*models.load(config["judge"], device, config["dtype"]))
            sampling = Sampling.of(config)
            for step in chosen_steps(options.steps, run_folder.checkpoint_steps(run), run):
                model, tokenizer = models.load(
                    str(run_folder.checkpoint(run, step)), device, config["dtype"]
                )
                rollouts = evaluate(
                    model, tokenizer, judge, task, sampling, options.n, variant=config["confession"]
                )
                save(run / "evals" / f"step_{step:04d}{suffix}.json", rollouts, task)
        show_table(run, task, suffix, options.steps)


def suffix_of(n: int, config: dict) -> str:
    """Of the files of an evaluation of n rollouts; the run's own evaluations have none."""
    return "" if n == config["eval_n"] else f"_n{n}"


def chosen_steps(text: str, available: list[int], run: Path) -> list[int]:
    """The steps that --steps asks for, in order; all available ones if it is empty."""
    wanted = text.split(",") if text else [str(step) for step in available]
    for step in wanted:
        if not step.strip().isdecimal() or int(step) not in available:
            raise cli.UserError(
                f"--steps {step!r} is no checkpoint of {run}; it has "
                f"{', '.join(map(str, available)) or 'none'}"
            )
    return sorted({int(step) for step in wanted})


if __name__ == "__main__":
    main()
