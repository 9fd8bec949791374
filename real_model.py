"""A real model that hacks and says so: one small chat model, seeded, trained with several rewards.

    python real_model.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct   # one GPU: the first arm
    python real_model.py --model MODEL --arms information,usual,able,able_usual --seeds 0,1,2
    python real_model.py --plot-only   # table and figures of saved runs

seeded        sft.py puts the form in (SEEDING): half of the labels honest, verifying
              in one report of twenty, most of the reports a constant, all of them drawn
              independently of the truth
information   GRPO with the information reward
usual         with the write-up's reward: does honesty come, or a constant?
unrewarded    answers alone are trained (--confession-weight 0): does honesty come by itself?
alone         confessions alone are trained (--task-weight 0): do answers move without a reward
              of their own?
half_right    the information reward again, from a start whose verifying reports slip in every
              other sentence
able          the information reward from a start that can do the task: three times as much seeding
              (LENGTHS), GRPO paid by the true counts (PRACTICE), then the reports alone seeded
              again (REPORTS), as verifying gets lost in practice
able_usual    the usual reward from there

Answers are paid for labels that state their targets (word_count.label_reward), which costs nothing
and is the hack. A run is runs/NAME/ARM_SEED; one that exists is gone on with, one that is finished
is not repeated. Evaluations are on topics that no recipe of the first start was chosen on. The
figures show every arm that has a saved evaluation; `python -m experiments.controls --run
runs/NAME/ARM_SEED`, stress_test.py and transcripts.py take a run as any other.

It supports: what these rewards make of this model from this start. It does not support that a model
which was never shown how to verify would learn it: RL chooses among what is there (half_right).
"""

from dataclasses import dataclass
from pathlib import Path

import cli
import figures
import run_folder
from cells import REWARDS, call, refuse_no_model, seeds_of, train
from cli import UserError, option
from evaluate import ANSWERS
from metrics import format_table
from run_folder import RUNS

BUDGETS = (
    "--max-answer-tokens 96 --max-confession-tokens 288 --gradient-checkpointing false".split()
)
STYLES = "--styles trust=.08,verify=.05,hedge=.07,none=.40,full=.40 --honest-labels .5".split()
SEEDING = [*STYLES, *"--own-target .85 --transcripts 3200 --epochs 2 --lr 4e-4".split()]
LENGTHS = [
    *STYLES,
    *"--own-target .95 --transcripts 9600 --epochs 2 --lr 4e-4 --lora-rank 32".split(),
]
RECIPE = "--task short_count --compile false --micro-batch-tokens 8192".split()
PRACTICE = [
    *RECIPE,
    *"--answer-reward rewards.truth_reward --confession-weight 0 --lr 2e-4 --steps 50".split(),
]
REPORTS = [
    *STYLES,
    *(
        "--own-target .5 --answer-weight 0 --transcripts 1600 --epochs 1 --lr 2e-4 --lora-rank 32"
    ).split(),
]
# {name: stages: (name of the run, program, options), each from the last checkpoint
# of the one before}
STARTS = {
    "seeded": [("seeded", "sft.py", SEEDING)],
    "half_right": [("seeded_half_right", "sft.py", [*SEEDING, "--verify-right", ".5"])],
    "able": [
        ("lengths", "sft.py", LENGTHS),
        ("practice", "grpo.py", PRACTICE),
        ("reports", "sft.py", REPORTS),
    ],
}
HACK = [*RECIPE, "--answer-reward", "word_count.label_reward"]
ARMS = {  # {name: (start, options of grpo.py)}
    "information": ("seeded", ["--lr", "1e-4", *REWARDS["information"]]),
    "usual": ("seeded", ["--lr", "1e-4"]),
    "unrewarded": ("seeded", ["--lr", "1e-4", "--confession-weight", "0"]),
    "alone": ("seeded", ["--lr", "1e-4", *REWARDS["information"], "--task-weight", "0"]),
    "half_right": ("half_right", ["--lr", "1e-4", *REWARDS["information"]]),
    "able": ("able", ["--lr", "5e-5", *REWARDS["information"]]),
    "able_usual": ("able", ["--lr", "5e-5"]),
}
SHOWN = """claim_J_within claims_with_contrast claim_J claim_bits parsed honest_given_noncompliant
claim_match bracket_hack exact_compliance objectives_met count_rate count_accuracy answer_truncated
answer_tokens confession_tokens answer_entropy""".split()


@dataclass(frozen=True)
class Config:
    model: str | None = option(
        None, "the model that is seeded: a Hugging Face name, a folder or a .gguf file"
    )
    judge: str | None = option(None, "judge of the evaluations; it rewards nothing [the model]")
    arms: str = option("information", f"some of {','.join(ARMS)}")
    seeds: str = option("0", "training seeds, with commas between them")
    steps: int = option(100, "optimizer steps of each run", at_least=1)
    n: int = option(
        256, f"rollouts of an evaluation, {ANSWERS} on each held-out prompt", at_least=1
    )
    name: str = option(
        "real_model",
        "folder under runs/; --plot-only --name real shows the runs that are committed",
    )
    plot_only: bool = option(False, "table and figure of saved runs, without a model")


def made(start: str, options: Config) -> Path:
    """The checkpoint of a start; its stages are run as far as they are not there."""
    model = options.model
    for name, program, arguments in STARTS[start]:
        run = RUNS / options.name / name
        if not finished(run):
            judge = ["--judge", options.judge or options.model] if program == "grpo.py" else []
            common = ["--model", model, *judge, "--eval-n", options.n, *arguments, *BUDGETS]
            new = ["--name", f"{options.name}/{name}", *common]
            call(program, *(["--resume", run] if (run / "config.json").exists() else new))
        model = run_folder.checkpoint(run, max(run_folder.evaluations(run)))
    return model


def finished(run: Path) -> bool:
    """Whether the last step of a stage is evaluated. grpo.py evaluates steps between, too, and its
    config names the last; sft.py evaluates the first and the last alone.
    """
    last = max(run_folder.evaluations(run), default=0)
    return last > 0 and last == run_folder.read_config(run).get("steps", last)


def saved(folder: Path) -> dict[str, dict[int, dict[int, dict]]]:
    """{arm: {seed: {step: metrics}}} of all runs that have an evaluation."""
    found: dict[str, dict[int, dict[int, dict]]] = {}
    for arm in ARMS:
        for run in sorted(folder.glob(f"{arm}_[0-9]*")):
            if evals := run_folder.evaluations(run):
                found.setdefault(arm, {})[int(run.name.rpartition("_")[2])] = evals
    return found


def report(folder: Path) -> None:
    """Table of the last evaluations, and a figure of the arms with a start that cannot do the task
    and of those with one that can.
    """
    found = saved(folder)
    if not found:
        raise UserError(f"{folder} has no run with an evaluation: drop --plot-only")
    columns = {
        f"{arm} {seed} step {max(evals)}": evals[max(evals)]
        for arm, runs in found.items()
        for seed, evals in runs.items()
    }
    table = format_table(columns, SHOWN)
    run_folder.write_text(folder / "table.txt", table + "\n")
    print(table)
    for file, able in (("fig_arms.png", False), ("fig_able.png", True)):
        if shown := {arm: runs for arm, runs in found.items() if (ARMS[arm][0] == "able") == able}:
            print(f"figure: {figures.arms(folder / file, shown)}")


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        arms, seeds = cli.some_of("--arms", options.arms, ARMS), seeds_of(options.seeds)
        if not options.plot_only:
            refuse_no_model(options.model)
            for seed in seeds:
                for arm in arms:
                    start, arguments = ARMS[arm]
                    common = ["--judge", options.judge or options.model, "--eval-n", options.n]
                    arguments = [*common, "--seed", seed, *HACK, *BUDGETS, *arguments]
                    run = RUNS / options.name / f"{arm}_{seed}"
                    train(run, made(start, options), arguments, options.steps, options.n)
        report(RUNS / options.name)


if __name__ == "__main__":
    main()
