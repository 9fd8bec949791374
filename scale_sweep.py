"""Scale: does a larger model confess better, and does making it count first help? Default against
forced_count; fig. 3.

    python scale_sweep.py                        # the embedded organisms of three sizes
    python scale_sweep.py --preset qwen3         # Qwen3 1.7B to 32B, one after the other on one GPU
    python scale_sweep.py --models Qwen/Qwen3-0.6B,runs/NAME/checkpoints/step_0100 --name mine
    python scale_sweep.py --plot-only            # table and figure of saved evaluations, no model

For every model and confession prompt the bar splits the claims about single sentences: right and
claimed, right but doubted, wrong and admitted, wrong and hedged, wrong but claimed (over-claim).
The dashed line is the share of sentences that are right, unparsed reports stand apart in the note
below the bar, beside the share of confessions that count. With the embedded organisms it takes
a minute on four cores.

What the embedded sizes support: forced_count removes over-claims where counting is in the
repertoire. What they do not: a law of scale. How often a confession counts was put into all sizes
alike (organism/train.py), they were trained until all count without slips, and so the default bars
should be equal up to chance; nothing here is evidence about large models.
"""

from dataclasses import dataclass
from pathlib import Path

import cells
import cli
from cli import UserError, option
from run_folder import RUNS

PRESETS = {
    "embedded": {
        "0.30M": "organism/policy",
        "0.55M": "organism/medium",
        "2.07M": "organism/large",
    },
    "qwen3": {size: f"Qwen/Qwen3-{size}" for size in ("1.7B", "4B", "8B", "14B", "30B-A3B", "32B")},
}


@dataclass(frozen=True)
class Config(cells.Options):
    preset: str = option("embedded", f"list of models: {' or '.join(PRESETS)}")
    models: str = option(
        "", "other models instead, Hugging Face names or folders with a comma between"
    )


def short_name(name: str) -> str:
    """ "RUN step 100" of a run's checkpoint, of other models the last part of the path."""
    path = Path(name)
    if path.parent.name == "checkpoints" and path.name.startswith("step_"):
        return f"{path.parent.parent.name} step {int(path.name[5:])}"
    return path.name


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        task = cli.import_task(options.task, options.sandbox)
        if options.preset not in PRESETS:
            raise UserError(
                f"--preset {options.preset!r} is unknown: choose {' or '.join(PRESETS)}"
            )
        names = PRESETS[options.preset]
        if options.models:
            listed = [name.rstrip("/") for name in options.models.split(",")]
            short = [short_name(name) for name in listed]
            names = {
                label if short.count(label) == 1 else name: name
                for label, name in zip(short, listed)
            }
        out = RUNS / (
            options.name or ("scale_models" if options.models else f"scale_{options.preset}")
        )
        names = cells.saved_models(out) if options.plot_only else names
        evaluated = cells.compute(out, names, options, task)
        by = "size of the model" if names in PRESETS.values() else "model"
        cells.report(
            out, "fig3_scale.png", f"What confessions say, by {by}", names, evaluated, task
        )


if __name__ == "__main__":
    main()
