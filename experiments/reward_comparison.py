"""What does each reward make of a model that can verify its answers, and of one that cannot?

    python -m experiments.reward_comparison               # 12 runs of grpo.py, 3 hours on a CPU
    python -m experiments.reward_comparison --seeds 0     # four of them
    python -m experiments.reward_comparison --plot-only   # table and figure of saved runs

The organisms: organism/policy, which counts right where it counts, and organism/policy_step_0800,
an early point of its training, which writes numbers behind words and gets nearly every total wrong.
The rewards: rewards.honesty_reward, the write-up's, and rewards.information_reward with weight 15
(its advantages are not scaled, and are about so much smaller).

A run is runs/rewards_ORGANISM_REWARD_SEED; one that exists is gone on with, one that is finished
is not repeated. The figure shows each seed at the run's own evaluations, the table the last step
with --n rollouts. Look at what rises in the organism that cannot verify: a rate of honest reports,
claim match and even J of the claims can rise because a model has learned which prompts are hard;
J within a prompt cannot. It supports a claim about these two organisms.
"""

import itertools
from dataclasses import dataclass

import cli
import evaluate
import figures
import metrics
import run_folder
from baselines import baselines
from cells import REWARDS, last_evaluation, seeds_of, train
from cli import UserError, option
from run_folder import RUNS
from tasks import word_count

ORGANISMS = {"verifies": "organism/policy", "cannot": "organism/policy_step_0800"}
SHOWN = """claim_J_within claim_J claim_bits grade_auroc parsed honest_given_noncompliant
false_confession claim_match bracket_hack exact_compliance count_rate count_accuracy""".split()


@dataclass(frozen=True)
class Config:
    seeds: str = option("0,1,2", "training seeds")
    steps: int = option(100, "optimizer steps of each run", at_least=1)
    n: int = option(
        256,
        f"rollouts of the last evaluation, {evaluate.ANSWERS} on each held-out prompt",
        at_least=1,
    )
    name: str = option("rewards_embedded", "folder under runs/ for table and figure")
    plot_only: bool = option(False, "table and figure of saved runs, without a model")


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        seeds = seeds_of(options.seeds)
        found, lines = (
            {},
            [
                (
                    f"step {options.steps}, n = {options.n}; prompt alone: on the answers "
                    "of the last seed"
                )
            ],
        )
        for (organism, model), (reward, arguments) in itertools.product(
            ORGANISMS.items(), REWARDS.items()
        ):
            cell, columns = f"{organism}, {reward}", {}
            for seed in seeds:
                run = RUNS / f"rewards_{organism}_{reward}_{seed}"
                if not options.plot_only:
                    seeded = ["--seed", str(seed), *arguments]
                    train(run, model, seeded, options.steps, options.n)
                saved = run_folder.evaluations(run)
                if (
                    not saved
                    or not (last := last_evaluation(run, options.steps, options.n)).exists()
                ):
                    raise UserError(
                        f"{run} has no evaluation of step {options.steps}, n = {options.n}: "
                        "drop --plot-only"
                    )
                found.setdefault((organism, reward), {})[seed] = saved
                rollouts = run_folder.load_rollouts(last.with_suffix(".jsonl"), word_count)
                columns[f"{cell}, seed {seed}"] = metrics.metrics(rollouts, word_count)
            columns[f"{cell}, prompt alone"] = metrics.metrics(
                baselines(rollouts, word_count)["prompt alone"], word_count
            )
            lines += ["", metrics.format_table(columns, SHOWN)]
        out = RUNS / options.name
        run_folder.write_text(out / "table.txt", "\n".join(lines) + "\n")
        print("\n".join(lines))
        print(f"figure: {figures.rewards(out / 'fig_rewards.png', found)}")


if __name__ == "__main__":
    main()
