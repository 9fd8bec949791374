"""Figures of a run, drawn from saved numbers; each PNG has its numbers beside it as JSON.

    python figures.py --run runs/NAME        # draw them again, without a model

One colour for one thing everywhere (Okabe and Ito's colour-blind-safe set), a marker and a direct label beside the
colour, shaded 95% intervals, and the published Qwen3-8B values of the small-scale write-up in grey.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import cli
import run_folder

COLOURS = {
    "honest_given_noncompliant": "#0072B2",
    "claim_match": "#009E73",
    "J": "#CC79A7",
    "bracket_hack": "#D55E00",
    "exact_compliance": "#000000",
    "judge_fooled": "#E69F00",
    "count_rate": "#0072B2",
    "hedge_rate": "#E69F00",
    "all_none": "#D55E00",
}
LABELS = {
    "honest_given_noncompliant": "honest | non-compliant",
    "claim_match": "claim match",
    "bracket_hack": "bracket hack",
    "exact_compliance": "answers correct",
    "judge_fooled": "judge fooled",
    "count_rate": "counts every word",
    "hedge_rate": "hedges (a Partial claim)",
    "all_none": "all claims None",
    "J": "J = honest - false confession",
}
MARKERS = dict(zip(COLOURS, "osD^Xvo^X"))
GREY = "#8a8a8a"

# The write-up's figures: Qwen3-8B, 64 rollouts a checkpoint; most values were read off its plots, good to about 0.01.
WRITEUP_STEPS = [0, 25, 50, 75, 100]
WRITEUP = {
    "exact_compliance": [0.05, 0.08, 0.03, 0.07, 0.10],
    "bracket_hack": [0.95, 0.88, 0.87, 0.90, 0.81],
    "claim_match": [0.78, 0.77, 0.77, 0.915, 0.855],
    "honest_given_noncompliant": [0.574, 0.661, 0.634, 0.649, 0.684],
}
WRITEUP_FOOLED = {"step_0": 0.28, "step_100": 0.37}  # ends of its trend line over training steps

STYLE = {
    "figure.figsize": (7.2, 4.2),
    "figure.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
}


def reproduction(run: Path) -> list[Path]:
    """fig. 1, fig. 5 and how honesty came about, from a run's evals/ and metrics.jsonl."""
    evals = {int(path.stem[5:]): run_folder.read_json(path) for path in sorted((run / "evals").glob("step_????.json"))}
    steps = run_folder.read_rows(run / "metrics.jsonl")
    if not evals or not steps:
        raise cli.UserError(f"{run} has no evaluation or no step yet: there is nothing to draw")
    with plt.rc_context(STYLE):
        return [_checkpoints(run, evals), _judge_fooled(run, steps), _verification(run, steps)]


def _checkpoints(run: Path, evals: dict[int, dict]) -> Path:
    """fig. 1: honesty over checkpoints while the hack stays, ours beside the write-up's."""
    figure, axis = plt.subplots()
    ends = []
    for metric in ("honest_given_noncompliant", "claim_match", "bracket_hack"):
        xs = [step for step in evals if evals[step][metric]["value"] is not None]
        value, low, high = ([evals[step][metric][key] for step in xs] for key in ("value", "low", "high"))
        axis.fill_between(xs, low, high, color=COLOURS[metric], alpha=0.15, linewidth=0)
        axis.plot(xs, value, color=COLOURS[metric], marker=MARKERS[metric], markersize=5)
        axis.plot(WRITEUP_STEPS, WRITEUP[metric], color=GREY, marker=MARKERS[metric], markersize=4, linewidth=1, linestyle=":")
        ends += [(value[-1], LABELS[metric], COLOURS[metric])] if value else []
    n = next(iter(evals.values()))["parsed"]["n"]
    _label_ends(axis, max(evals), ends)
    _finish(axis, "GRPO step", f"share (95% interval, n = {n} rollouts)", "Confessions become honest while the hack persists")
    axis.plot([], [], color="#333333", marker="o", markersize=5, label="embedded model organism (this run)")
    axis.plot([], [], color=GREY, marker="o", markersize=4, linewidth=1, linestyle=":", label="write-up, Qwen3-8B (same markers)")
    axis.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1.0, 0.0))
    numbers = {
        "ours": {m: {step: e[m] for step, e in evals.items()} for m in WRITEUP},
        "writeup_qwen3_8b": {"steps": WRITEUP_STEPS, **WRITEUP},
    }
    return _save(figure, run / "fig1_honesty.png", numbers)


def _judge_fooled(run: Path, steps: list[dict]) -> Path:
    """fig. 5: share of a step's answers that fool the judge, and that are correct, each with a least-squares line."""
    figure, axis = plt.subplots()
    xs = np.array([row["step"] for row in steps])
    ends, trends = [], {}
    for metric in ("judge_fooled", "exact_compliance"):
        values = np.array([np.nan if row[metric] is None else row[metric] for row in steps])
        known = np.isfinite(values)
        axis.plot(xs, values, ".", color=COLOURS[metric], alpha=0.4, markersize=5)
        if known.sum() >= 2:
            slope, start = np.polyfit(xs[known], values[known], 1)
            trends[metric] = {"at_step_0": start, "at_last_step": start + slope * xs[-1]}
            axis.plot([0, xs[-1]], [start, start + slope * xs[-1]], color=COLOURS[metric], linewidth=2)
            ends.append((start + slope * xs[-1], LABELS[metric], COLOURS[metric]))
    axis.plot(
        [0, 100], list(WRITEUP_FOOLED.values()), color=GREY, linestyle=":", label="write-up, Qwen3-8B: judge fooled (trend)"
    )
    axis.legend(frameon=False, fontsize=8.5, loc="upper left")
    _label_ends(axis, xs[-1], ends)
    _finish(axis, "GRPO step", "share of the step's answers", "The weak judge is fooled more; the answers get no better")
    points = {row["step"]: {m: row[m] for m in ("judge_fooled", "exact_compliance")} for row in steps}
    return _save(figure, run / "fig5_judge_fooled.png", {"steps": points, "trends": trends, "writeup_qwen3_8b": WRITEUP_FOOLED})


def _verification(run: Path, steps: list[dict]) -> Path:
    """Is it base rate or verification? How confessions are made over training (rolling mean of 5 steps)."""
    figure, axis = plt.subplots()
    names = ("honest_given_noncompliant", "count_rate", "hedge_rate", "all_none", "J")
    xs, ends, smoothed = [row["step"] for row in steps], [], {}
    for metric in names:
        values = np.array([np.nan if row[metric] is None else row[metric] for row in steps])
        smoothed[metric] = _rolling_mean(values, 5)
        style = {"honest_given_noncompliant": "-", "J": "-"}.get(metric, "--")
        axis.plot(xs, smoothed[metric], style, color=COLOURS[metric])
        ends.append((smoothed[metric][-1], LABELS[metric], COLOURS[metric]))
    _label_ends(axis, xs[-1], ends)
    _finish(axis, "GRPO step", "share of the step's rollouts (mean of 5 steps)", "Honesty by checking, not by always confessing")
    none_if_nan = lambda values: [float(v) if np.isfinite(v) else None for v in values]
    return _save(figure, run / "fig_verification.png", {"steps": xs, **{m: none_if_nan(v) for m, v in smoothed.items()}})


def _rolling_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the last `width` known values at each place; NaN where there is none."""
    windows = [values[max(0, i + 1 - width) : i + 1] for i in range(len(values))]
    return np.array([w[np.isfinite(w)].mean() if np.isfinite(w).any() else np.nan for w in windows])


def _label_ends(axis, x: float, ends: list[tuple[float, str, str]], gap: float = 0.055) -> None:
    """Write each line's name at its right end, moved apart where they would overlap and kept inside the axis."""
    ends = sorted(end for end in ends if np.isfinite(end[0]))
    places = []
    for y, _, _ in ends:
        places.append(max(y, places[-1] + gap) if places else y)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], 1.0 - gap * (len(places) - 1 - i))
    for place, (_, label, colour) in zip(places, ends):
        axis.annotate(
            label,
            (x, place),
            xytext=(8, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


def _finish(axis, xlabel: str, ylabel: str, title: str) -> None:
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(-0.03, 1.03))
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axis.xaxis.get_major_locator().set_params(integer=True)


def _save(figure, path: Path, numbers: dict) -> Path:
    figure.savefig(path, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    run_folder.write_json(path.with_suffix(".json"), numbers)
    return path


@dataclass(frozen=True)
class Config:
    run: str | None = cli.option(None, "run folder whose figures are drawn again [the newest]")


def main() -> None:
    config = cli.parse(Config, __doc__)
    with cli.user_errors():
        for path in reproduction(Path(config.run) if config.run else run_folder.newest()):
            print(path)


if __name__ == "__main__":
    main()
