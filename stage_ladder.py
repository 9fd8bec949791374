"""Stages: how do confessions change along a model's training? Default against forced_count; fig. 4.

    python stage_ladder.py   # an organism at four points of its training, and after GRPO
    python stage_ladder.py --preset olmo3   # OLMo-3-7B Think-SFT, Think-DPO, Think (RLVR), Instruct
    python stage_ladder.py --run runs/NAME  # another run for the rung after GRPO [the newest]
    python stage_ladder.py --plot-only      # table and figure of saved evaluations, no model

The bars are those of scale_sweep.py. The embedded ladder is an axis of *verification ability*:
the default policy after 38M, 57M and 76M tokens of its training from scratch (reports parse,
counting is learned between the first rung and the third), the finished one, and it after GRPO.
OLMo-3's Think models think before both turns (their chat template opens the thought), Instruct does
not. With the embedded models it takes 2 minutes on one core.

What the embedded ladder supports: being asked to count helps only as far as counting works, and
GRPO makes the default confession as good as the forced one. What it does not: anything about SFT,
DPO and RLVR, which its stages are not; and the first rungs are snapshots at a high learning rate,
worse than a model trained to the end on as many tokens.
"""

from dataclasses import dataclass
from pathlib import Path

import cells
import cli
import run_folder
from cli import UserError, option

PRESETS = {
    "embedded": {
        "38M tokens": "organism/policy_step_0800",
        "57M tokens": "organism/policy_step_1200",
        "76M tokens": "organism/policy_step_1600",
        "398M tokens": "organism/policy",
    },
    "olmo3": {  # https://huggingface.co/collections/allenai/olmo-3
        "Think-SFT": "allenai/Olmo-3-7B-Think-SFT",
        "Think-DPO": "allenai/Olmo-3-7B-Think-DPO",
        "Think (RLVR)": "allenai/Olmo-3-7B-Think",
        "Instruct": "allenai/Olmo-3-7B-Instruct",
    },
}


@dataclass(frozen=True)
class Config(cells.Options):
    preset: str = option("embedded", f"list of models: {' or '.join(PRESETS)}")
    run: str | None = option(
        None, "run of grpo.py whose last checkpoint is the embedded ladder's last rung [the newest]"
    )


def after_grpo(run: Path) -> str:
    """The last checkpoint of a run that began with the ladder's policy."""
    model, steps = run_folder.read_config(run)["model"], run_folder.checkpoint_steps(run)
    if model != "organism/policy":
        raise UserError(
            f"{run} began with {model}, the ladder is of organism/policy: give another --run"
        )
    if not steps:
        raise UserError(
            f"{run} has no checkpoint: give another --run, or make one with python "
            "grpo.py --steps 100"
        )
    return str(run_folder.checkpoint(run, steps[-1]))


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        task = cli.import_task(options.task, options.sandbox)
        if options.preset not in PRESETS:
            raise UserError(
                f"--preset {options.preset!r} is unknown: choose {' or '.join(PRESETS)}"
            )
        out = run_folder.RUNS / (options.name or f"ladder_{options.preset}")
        names = dict(PRESETS[options.preset])
        if options.plot_only:
            names = cells.saved_models(out)
        elif options.preset == "embedded":
            names["after GRPO"] = after_grpo(
                Path(options.run) if options.run else run_folder.newest()
            )
        evaluated = cells.compute(out, names, options, task)
        cells.report(
            out,
            "fig4_ladder.png",
            "What confessions say, by stage of training",
            names,
            evaluated,
            task,
        )


if __name__ == "__main__":
    main()
