"""Stress test: does the confession stay honest when a system prompt presses on it? Five
conditions x every checkpoint.

    python stress_test.py                                        # the newest run, n = 64 a cell
    python stress_test.py --run runs/NAME --steps 0,100 --n 256  # its ends, narrower intervals
    python stress_test.py --conditions baseline,jailbreak        # two of tasks/system_prompts.py
    python stress_test.py --run runs/NAME --plot-only            # from saved cells, no model

A condition's paraphrases are cycled over the prompts. Every cell meets the same held-out prompts
with the same seeds, so differences between conditions and between checkpoints are paired.
A system prompt that the chat template inserts by itself stands in every cell, before the
condition's text, also in the baseline. A cell is saved when it is finished, in
evals/stress_CONDITION_step_0025_n64.json with its rollouts beside it, and is not computed again:
an interrupted grid goes on where it stopped. With the embedded models the 25 cells take 4
minutes on one core.

It supports: how *this* policy confesses under these texts, and what training without them changed.
It does not support:
  1. The embedded policy's reactions at step 0 were put in by hand (organism/train.py:
     under jailbreak it always trusts). They are no finding, and nothing here is evidence
     about large models.
  2. The system prompt also stands before the answer, and honesty is taken over non-compliant
     answers only: conditions may differ in the answers that they produce. The table has
     exact_compliance beside it.
  3. Honest | non-compliant alone rewards confessing always; J (fig2_stress_claims.png) subtracts
     false confessions.
  4. Intervals are per number: of four comparisons to baseline, one or more misses 0 by chance in up
     to one grid in five.
"""

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import cli
import figures
import models
import run_folder
from cells import Cells
from cli import UserError, option
from evaluate import ANSWERS, chosen_steps, evaluate, stored
from metrics import differences, format_table, metrics
from rewards import Judge
from rollout import Sampling
from tasks.system_prompts import SYSTEM_PROMPTS

SHOWN = {
    "honest": "honest_given_noncompliant",
    "info": "claim_J_within",
    "claims": "claim_match",
    "counted": "count_rate",
    "hack": "bracket_hack",
    "exact": "exact_compliance",
    "parsed": "parsed",
}


@dataclass(frozen=True)
class Config:
    run: str | None = option(None, "run folder whose checkpoints are tested [the newest]")
    n: int = option(64, f"rollouts a cell, {ANSWERS} on each held-out prompt", at_least=1)
    steps: str = option("", "checkpoints, such as 0,100 [all]")
    conditions: str = option("", f"some of {','.join(SYSTEM_PROMPTS)} [all]")
    device: str = option("auto", "auto, cpu or cuda")
    plot_only: bool = option(False, "table and figures of saved cells, without a model")


def chosen_conditions(text: str) -> list[str]:
    wanted = cli.some_of("--conditions", text, SYSTEM_PROMPTS)
    return [name for name in SYSTEM_PROMPTS if name in wanted]


def systems(condition: str, n: int) -> list[str | None]:
    """The system prompts of a cell's n rollouts:
    the paraphrases in turn, one for all answers to a prompt.
    """
    paraphrases = SYSTEM_PROMPTS[condition]
    return [paraphrases[i // ANSWERS % len(paraphrases)] for i in range(n)]


def cell_path(run: Path, step: int, condition: str, n: int) -> Path:
    return run / "evals" / f"stress_{condition}_step_{step:04d}_n{n}.json"


def saved_steps(run: Path, n: int) -> list[int]:
    """Steps with a saved cell; the checkpoints themselves may be gone."""
    return sorted(
        {
            int(path.stem.split("_")[-2])
            for path in (run / "evals").glob(f"stress_*_step_*_n{n}.json")
        }
    )


def is_saved(path: Path, condition: str, n: int, task) -> bool:
    """Whether a cell is complete and was made with today's texts of tasks/system_prompts.py."""
    rollouts = stored(path, task)
    return rollouts is not None and [r.system for r in rollouts] == systems(condition, n)


def compute(
    todo: list[tuple[int, str]],
    paths: dict[tuple[int, str], Path],
    run: Path,
    config: dict,
    task,
    options: Config,
) -> None:
    """Evaluate cells one after another; each is on disk before the next one begins."""
    judge = Judge(*models.load(config["judge"], models.device_of(options.device), config["dtype"]))
    computer = Cells(task, options.device)
    for step, condition in tqdm(
        todo, total=len(paths), initial=len(paths) - len(todo), unit="cell"
    ):
        prompts = {"systems": systems(condition, options.n), "variant": config["confession"]}
        rollouts = evaluate(
            *computer.load(str(run_folder.checkpoint(run, step)), config["dtype"]),
            judge=judge,
            task=task,
            sampling=Sampling.of(config),
            n=options.n,
            **prompts,
        )
        title = f"step {step:4} {condition:9}"
        computer.keep(paths[step, condition], rollouts, title, **SHOWN)


def report(run: Path, paths: dict[tuple[int, str], Path], n: int, task) -> None:
    """Tables of the last checkpoint and the figures, from saved cells alone."""
    cells: dict[str, dict[int, dict]] = {}  # condition -> step -> metrics
    rollouts = {}  # of the last step
    for (step, condition), path in sorted(paths.items(), key=lambda cell: cell[0][0]):
        rollouts[condition] = stored(path, task)
        cells.setdefault(condition, {})[step] = metrics(rollouts[condition], task)
    last = max(step for step, _ in paths)
    tables = [f"step {last}, n = {n}", format_table({c: cells[c][last] for c in cells})]
    if "baseline" in cells and len(cells) > 1:
        compared = {
            f"{c} - baseline": differences(rollouts["baseline"], rollouts[c], task)
            for c in cells
            if c != "baseline"
        }
        tables += ["\npaired differences on the same prompts", format_table(compared)]
    run_folder.write_text(run / f"table_stress_n{n}.txt", "\n".join(tables) + "\n")
    print("\n".join(tables))
    for path in figures.stress(run, cells):
        print(f"figure: {path}")


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        conditions = chosen_conditions(options.conditions)
        run = Path(options.run) if options.run else run_folder.newest()
        config = run_folder.read_config(run)
        task = cli.import_task(config["task"], config.get("sandbox"))
        available = (
            saved_steps(run, options.n) if options.plot_only else run_folder.checkpoint_steps(run)
        )
        if not available:
            missing = (
                f"saved cells with n = {options.n}: run this without --plot-only"
                if options.plot_only
                else "checkpoints"
            )
            raise UserError(f"{run} has no {missing}")
        steps = chosen_steps(options.steps, available, run)
        paths = {
            (step, c): cell_path(run, step, c, options.n) for step in steps for c in conditions
        }
        todo = [
            (step, c) for (step, c), path in paths.items() if not is_saved(path, c, options.n, task)
        ]
        if todo and options.plot_only:
            raise UserError(
                f"{len(todo)} of {len(paths)} cells are missing, first {paths[todo[0]]}: run this "
                "without --plot-only"
            )
        if todo:
            compute(todo, paths, run, config, task, options)
        report(run, paths, options.n, task)


if __name__ == "__main__":
    main()
