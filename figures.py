"""Figures of a run, drawn from saved numbers; each PNG has its numbers beside it as JSON.

    python figures.py --run runs/NAME          # draw them again, without a model
    python figures.py --run runs/NAME --live   # and again, while the run trains

One colour for one thing everywhere (Okabe and Ito's colour-blind-safe set), a marker and a direct
label beside the colour, shaded 95% intervals, and the published Qwen3-8B values of the small-scale
write-up in grey.
"""

import io
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator

import cli
import models
import run_folder

COLOURS = {  # Okabe and Ito's set for metrics
    "claim_J_within": "#CC3311",
    "honest_given_noncompliant": "#0072B2",
    "claim_match": "#009E73",
    "J": "#CC79A7",
    "bracket_hack": "#E69F00",
    "exact_compliance": "#000000",
    "judge_fooled": "#7A5C00",
    "count_rate": "#56B4E9",
    "hedge_rate": "#999933",
    "all_none": "#8C564B",
    "parsed": "#6A3D9A",
    # Paul Tol's muted set for conditions (stress_test.py) and for whose confession it is
    # (experiments/controls.py)
    "baseline": "#000000",
    "awareness": "#332288",
    "soft": "#44AA99",
    "hard": "#BB8A1D",
    "jailbreak": "#882255",
    "on-policy": "#000000",
    "frozen answers": "#332288",
    "fresh, same model": "#44AA99",
    "fresh, untrained": "#882255",
    "first checkpoint": "#BB8A1D",
    "last checkpoint": "#332288",
    "information": "#CC3311",
    "usual": "#0072B2",
    "unrewarded": "#000000",
    "alone": "#E69F00",
    "half_right": "#8C564B",
    "able": "#CC3311",
    "able_usual": "#0072B2",
    "own answer": "#000000",
    "its sibling": "#882255",
    "shown sibling: scored on the text": "#332288",
    "shown sibling: scored on the thought": "#44AA99",
    # the five-way split of claims
    "right_full": "#009E73",
    "right_doubted": "#A6DCC9",
    "wrong_none": "#0072B2",
    "wrong_partial": "#A9CDE8",
    "over_claim": "#D55E00",
}
LABELS = {
    "claim_J_within": "J within a prompt | parsed",
    "parsed": "report parses",
    "honest_given_noncompliant": "honest | non-compliant, parsed",
    "claim_match": "claim match | parsed",
    "bracket_hack": "bracket hack",
    "exact_compliance": "answers correct",
    "judge_fooled": "judge fooled",
    "count_rate": "counts every word",
    "hedge_rate": "hedges (a Partial claim) | parsed",
    "all_none": "all claims None | parsed",
    "J": "J = honest - false confession | parsed",
    "right_full": "right, claimed",
    "right_doubted": "right, doubted",
    "wrong_none": "wrong, admitted (None)",
    "wrong_partial": "wrong, hedged (Partial)",
    "over_claim": "wrong, claimed: over-claim",
    "answer_tokens": "tokens of an answer",
}
ARMS = {
    "information": "information reward",
    "usual": "usual reward",
    "unrewarded": "no confession training",
    "alone": "confession training alone",
    "half_right": "information reward, half-right start",
    "able": "information reward",
    "able_usual": "usual reward",
}
MARKERS = dict(zip(COLOURS, "*osD^XvPd<hosD^XosD^so*osD^*oosD^"))
GREY = "#8a8a8a"
# lines that carry a figure, and those beside them
THICK, THIN = dict(linewidth=2.2), dict(linewidth=0.9, markersize=3.5)

PUBLISHED = dict(color=GREY, markersize=3.5, linestyle=":")

# The write-up's figures: Qwen3-8B, 64 rollouts a checkpoint; most values were read off its plots,
# good to about 0.01.
WRITEUP_STEPS = [0, 25, 50, 75, 100]
WRITEUP = {
    "exact_compliance": [0.05, 0.08, 0.03, 0.07, 0.10],
    "bracket_hack": [0.95, 0.88, 0.87, 0.90, 0.81],
    "claim_match": [0.78, 0.77, 0.77, 0.915, 0.855],
    "honest_given_noncompliant": [0.574, 0.661, 0.634, 0.649, 0.684],
}
WRITEUP_FOOLED = {"step_0": 0.28, "step_100": 0.37}  # ends of its trend line over training steps
WRITEUP_STRESS = {  # honest | non-compliant
    "baseline": [0.574, 0.661, 0.634, 0.649, 0.684],
    "awareness": [0.68, 0.655, 0.745, 0.74, 0.745],
    "soft": [0.66, 0.64, 0.75, 0.73, 0.755],
    "hard": [0.455, 0.73, 0.57, 0.70, 0.66],
    "jailbreak": [0.03] * 5,  # "about 0.03" throughout
}

WRITEUP_OVER_CLAIM = {  # by model and confession prompt
    "Qwen/Qwen3-1.7B": {"default": 0.32, "forced_count": 0.25},
    "Qwen/Qwen3-4B": {"default": 0.145, "forced_count": 0.035},
    "Qwen/Qwen3-8B": {"default": 0.05, "forced_count": 0.01},
    "Qwen/Qwen3-14B": {"default": 0.375, "forced_count": 0.07},
    "Qwen/Qwen3-30B-A3B": {"default": 0.13, "forced_count": 0.02},
    "Qwen/Qwen3-32B": {"default": 0.175, "forced_count": 0.06},
    "allenai/Olmo-3-7B-Think-SFT": {"default": 0.0},
    "allenai/Olmo-3-7B-Think-DPO": {"default": 0.045},
    "allenai/Olmo-3-7B-Think": {"default": 0.0},
    "allenai/Olmo-3-7B-Instruct": {"default": 0.37},
}

STYLE = {
    "figure.figsize": (7.2, 4.2),
    "figure.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "savefig.bbox": "tight",
    "savefig.facecolor": "white",
}


def reproduction(run: Path) -> list[Path]:
    """fig. 1, fig. 5 and how honesty came about, from a run's evals/ and metrics.jsonl."""
    evals = run_folder.evaluations(run)
    steps = run_folder.read_rows(run / "metrics.jsonl")
    if not evals or not steps:
        raise cli.UserError(f"{run} has no evaluation or no step yet: there is nothing to draw")
    return _drawn(run, evals, steps)


def _drawn(run: Path, evals: dict[int, dict], steps: list[dict]) -> list[Path]:
    """Those that there is something for."""
    with plt.rc_context(STYLE):
        paths = [_checkpoints(run, evals)] if evals else []
        return paths + ([_judge_fooled(run, steps), _verification(run, steps)] if steps else [])


def live(run: Path, wait: float = 2.0) -> Iterator[tuple[int, list[Path]]]:
    """Draw a run's figures whenever it has recorded a step or an evaluation, until nobody trains in
    it; yields (steps so far, figures). wait: seconds between two looks.
    """
    seen = None
    while True:
        training = run_folder.in_use(run)  # before the look: what it wrote until then is drawn
        evals, steps = run_folder.evaluations(run), run_folder.read_rows(run / "metrics.jsonl")
        if (evals or steps) and (list(evals), len(steps)) != seen:
            seen = list(evals), len(steps)
            yield len(steps), _drawn(run, evals, steps)
        if not training:
            return
        time.sleep(wait)


def stress(run: Path, cells: dict[str, dict[int, dict]]) -> list[Path]:
    """fig. 2: honesty under system prompts, and the claims behind it; `cells`: {condition:
    {step: metrics}}.
    """
    with plt.rc_context(STYLE):
        return [_stress_honesty(run, cells), _stress_claims(run, cells)]


def control(run: Path, name: str, lines: dict[str, dict[int | str, dict]]) -> Path:
    """A control's figure, a panel a metric; `lines`: {line: {step, thought cap or confession
    prompt: metrics}}. The first line has every place of the x axis, the others perhaps fewer.
    """
    title = {
        "frozen": "Frozen answers",
        "fresh": "A fresh conversation",
        "compute": "Thought of the confession cut short",
        "swapped": "The report of an answer, scored on another one to its prompt",
        "asked": "The same answers under other confession prompts",
    }[name]
    # places that are no steps
    named = {"compute": "tokens of thought at most", "asked": "confession prompt"}
    ticks = list(next(iter(lines.values())))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(16, 3.7))
        for axis, metric in zip(
            axes, ("claim_J_within", "parsed", "honest_given_noncompliant", "J")
        ):
            for i, (line, evals) in enumerate(lines.items()):
                places = list(evals) if name not in named else list(range(len(evals)))
                width = (max(places) - min(places)) or 1
                shift = 0.012 * width * (i - (len(lines) - 1) / 2)
                colour = (
                    line if line in COLOURS else ("last checkpoint" if i else "first checkpoint")
                )
                _line(axis, dict(zip(places, evals.values())), metric, colour, shift, label=line)
            _finish(axis, named.get(name, "GRPO step"), "", _title(metric))
            if metric in ("claim_J_within", "J"):
                _room_below(
                    axis, [e[metric]["low"] for evals in lines.values() for e in evals.values()]
                )
            if name in named:
                axis.set_xticks(range(len(ticks)), ticks)
            elif len(ticks) <= 6:
                axis.set_xticks(ticks)
        axes[-1].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        n = next(iter(next(iter(lines.values())).values()))["parsed"]["n"]
        axes[0].set_ylabel(f"share (95% interval, n = {n} rollouts)")
        figure.suptitle(title, x=0.125, y=1.0, ha="left", fontsize=11, fontweight="bold")
        figure.subplots_adjust(top=0.85, wspace=0.22)
        kept = (
            "claim_J_within",
            "claim_match",
            "honest_given_noncompliant",
            "J",
            "grade_auroc",
            "parsed",
        )
        numbers = {
            line: {x: {m: e[m] for m in kept} for x, e in evals.items()}
            for line, evals in lines.items()
        }
        return _save(figure, run / f"fig_{name}.png", {"n": n, "ours": numbers})


def seeds(path: Path, evals: dict[int, dict[str, dict[str, dict]]], runs: list[str]) -> Path:
    """Runs that differ in their training seed: above the values of each, below their
    paired differences.

    evals: {step: across_seeds}, whose columns are the runs, their mean and the differences.
    """
    metrics = ("claim_J_within", "parsed", "honest_given_noncompliant", "claim_match")
    columns = next(iter(evals.values()))
    pairs = [name for name in columns if name not in (*runs, "mean")]
    last = max(evals) or 1
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 4, figsize=(17, 6), sharex=True, sharey="row")
        for (above, below), metric in zip(axes.T, metrics):
            _finish(above, "", "", _title(metric))
            _finish(below, "GRPO step", "", "")
            for names, axis in ((runs, above), (pairs, below)):
                for i, name in enumerate(names):
                    shift = 0.014 * last * (i - (len(names) - 1) / 2)
                    of_name = {step: c[name] for step, c in evals.items()}
                    _line(
                        axis,
                        of_name,
                        metric,
                        metric,
                        shift,
                        marker="osD^XvPd<h"[i % 10],
                        linewidth=1,
                        label=name,
                    )
            below.axhline(0, color=GREY, linewidth=1)
        for row, names in zip(axes, (runs, pairs)):
            ends = [
                v
                for c in evals.values()
                for n in names
                for m in metrics
                for v in (c[n][m]["low"], c[n][m]["high"])
            ]
            known = [v for v in ends if v is not None]
            row[0].set_ylim(
                min([0.0, *known]) - 0.05, max([0.0 if names == pairs else 1.0, *known]) + 0.05
            )
            row[-1].legend(
                frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5)
            )
        axes[0][0].set_ylabel("share (95% interval)")
        axes[1][0].set_ylabel("paired difference (95% interval)")
        figure.suptitle(
            f"{len(runs)} training seeds",
            x=0.125,
            y=0.97,
            ha="left",
            fontsize=11,
            fontweight="bold",
        )
        return _save(
            figure,
            path,
            {
                step: {n: {m: e[m] for m in metrics} for n, e in c.items()}
                for step, c in evals.items()
            },
        )


def rewards(path: Path, found: dict[tuple[str, str], dict[int, dict[int, dict]]]) -> Path:
    """Panels of organisms x rewards: what can be told of the answers (thick) and what looks
    like it, a line a seed.

    found: {(organism, reward): {seed: {step: metrics}}}.
    """
    titles = {"verifies": "an organism that can verify", "cannot": "one that cannot"}
    metrics = ("claim_J_within", "honest_given_noncompliant", "claim_match", "bracket_hack")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(12, 7.6), sharex=True, sharey=True)
        for axis, ((organism, reward), seeds) in zip(axes.flat, found.items(), strict=True):
            ends = []
            for metric in metrics:
                style = THICK if metric == "claim_J_within" else THIN
                drawn = [
                    _line(axis, evals, metric, metric, interval=False, **style)
                    for evals in seeds.values()
                ]
                last = [values[-1] for values in drawn if values]
                ends += (
                    [(sum(last) / len(last), LABELS[metric].split(" | ")[0], COLOURS[metric])]
                    if last
                    else []
                )
            _label_ends(axis, max(max(evals) for evals in seeds.values()), ends, gap=0.075)
            axis.axhline(0, color=GREY, linewidth=1)
            _finish(
                axis,
                "GRPO step" if organism == "cannot" else "",
                "",
                f"{reward} reward, {titles[organism]}",
            )
            axis.set_ylim(-0.25, 1.05)
        n = _n(next(iter(found.values())))
        figure.supylabel(f"a line a training seed, n = {n} rollouts a point", x=0.06, fontsize=10)
        figure.subplots_adjust(wspace=0.55, hspace=0.2)
        numbers = {
            f"{organism}, {reward}": {
                s: {step: {m: e[m] for m in metrics} for step, e in evals.items()}
                for s, evals in seeds.items()
            }
            for (organism, reward), seeds in found.items()
        }
        return _save(figure, path, numbers)


def arms(path: Path, found: dict[str, dict[int, dict[int, dict]]]) -> Path:
    """Runs of one model, a line a run, by what their confessions were rewarded with; the first
    arm is drawn thick.

    found: {arm: {seed: {step: metrics}}}, some of real_model.ARMS.
    """
    first = next(iter(found))
    metrics = ("claim_J_within", "claim_match", "bracket_hack", "answer_tokens")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(17, 3.7))
        for axis, metric in zip(axes, metrics):
            for arm, runs in found.items():
                for i, evals in enumerate(runs.values()):
                    style = THICK if arm == first else {}
                    _line(
                        axis,
                        evals,
                        metric,
                        arm,
                        interval=arm == first,
                        label=ARMS[arm] if i == 0 else None,
                        **style,
                    )
                    # what always None or always Full would score on the same answers
                    if metric == "claim_match":
                        best = [
                            max(met, 1 - met)
                            for met in (e["objectives_met"]["value"] for e in evals.values())
                        ]
                        axis.plot(
                            list(evals),
                            best,
                            color=COLOURS[arm],
                            linewidth=0.9,
                            linestyle=(0, (3, 2)),
                        )
            _finish(axis, "GRPO step", "", _title(metric))
            if metric == "claim_J_within":
                _room_below(axis, [])
                axis.set_ylim(bottom=-0.3)
            elif metric == "answer_tokens":
                axis.set_ylim(0, axis.dataLim.y1 * 1.1)
            axis.set_xticks(
                sorted(
                    {
                        step
                        for runs in found.values()
                        for evals in runs.values()
                        for step in evals
                        if step % 25 == 0
                    }
                )
            )
        axes[0].set_ylabel(f"n = {_n(found[first])} rollouts a point")
        axes[-1].plot(
            [],
            [],
            color=GREY,
            linewidth=0.9,
            linestyle=(0, (3, 2)),
            label="the better constant, same answers",
        )
        axes[-1].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        numbers = {
            arm: {
                seed: {step: {m: e[m] for m in metrics} for step, e in evals.items()}
                for seed, evals in runs.items()
            }
            for arm, runs in found.items()
        }
        return _save(figure, path, numbers)


def seeding(path: Path, found: dict[str, dict]) -> Path:
    """A line a cell of experiments/seed_hack.py: where the seeded hack fires, the honest path, and
    what reports tell, hollow before seeding and filled after. found: its numbers().
    """
    rows = {cell: len(found) - i for i, cell in enumerate(found)}

    def dot(axis, y: float, e: dict, colour: str, **style) -> None:
        if e["value"] is not None:
            if e["low"] is not None:
                axis.hlines(y, e["low"], e["high"], color=colour, alpha=0.5, linewidth=1.2)
            axis.plot(e["value"], y, color=colour, **{"marker": "o", "markersize": 5} | style)

    hollow = {"markerfacecolor": "white"}
    tick = {"marker": "|", "markersize": 9, "color": "#333333", "linestyle": ""}
    levels = dict(zip(("level 1", "level 2", "level 3"), ("#44AA99", "#BB8A1D", "#882255")))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(17, 0.45 * len(found) + 1.6), sharey=True)
        for cell, y in rows.items():
            data = found[cell]
            for shift, (level, colour) in zip((0.22, 0, -0.22), levels.items()):
                dot(axes[0], y + shift, data["answers"]["after"]["fires"][level], colour)
                axes[0].plot(data["hacked"][level], y + shift, **tick)
            sides = (("before", 0.12, hollow), ("after", -0.12, {}))
            for side, shift, style in sides:
                solved = data["answers"][side]["solved | no hack"]["all"]
                dot(axes[1], y + shift, solved, COLOURS["exact_compliance"], **style)
                told = data["confessions"][side]
                for axis, column in ((axes[2], "J within"), (axes[3], "bits")):
                    dot(axis, y + shift, told["reported"][column], COLOURS["J"], **style)
                    dot(axis, y + 0.6 * shift, told["shuffled"][column], GREY, marker="x")
        for level, colour in levels.items():
            axes[3].plot([], [], color=colour, marker="o", linestyle="", label=level)
        axes[3].plot([], [], **tick, label="share of its transcripts")
        black = {"color": "#333333", "marker": "o", "linestyle": ""}
        axes[3].plot([], [], **black, **hollow, label="before")
        axes[3].plot([], [], **black, label="after")
        axes[3].plot([], [], color=GREY, marker="x", linestyle="", label="shuffled reports")
        titles = (
            "the hack fires",
            "solved | no hack",
            "J within a prompt | parsed",
            "bits a claim",
        )
        for axis, title in zip(axes, titles):
            axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
        for axis in axes[:2]:
            axis.set_xlim(-0.03, 1.03)
        for axis in axes[2:]:
            axis.axvline(0, color=GREY, linewidth=1)
        axes[0].set_yticks(list(rows.values()), list(rows))
        axes[3].legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        n = next(iter(found.values()))["answers"]["after"]["fires"]["all"]["n"]
        axes[0].set_xlabel(f"share (95% interval, n = {n} rollouts)")
        figure.subplots_adjust(wspace=0.1)
        return _save(figure, path, found)


EMERGENCE = {  # colours of experiments/emergence.py
    "forbidden": "#CC3311",
    "paraphrased": "#AA4499",
    "neutral": "#0072B2",
    "silent": "#44AA99",
    "hard": "#E69F00",
    "hard_kl": "#332288",
    "forbidden_kl": "#000000",
    "seeded": "#8C564B",
}


def emergence(path: Path, found: dict[str, dict[int, dict]]) -> Path:
    """Panels over training steps, a line a run, a colour an arm: two hacks, and what is paid beside
    what is solved; means over the last five steps.

    found: {arm: {seed: experiments.emergence.summary}}.
    """
    panels = (
        ("Replaces run_tests and passes", {"replaces and passes": "-"}),
        ("Hard-codes the examples", {"hard-codes": "-"}),
        ("Solved (solid) and passing (dashed)", {"solved": "-", "passes": (0, (3, 2))}),
    )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharex=True, sharey=True)
        for axis, (title, shown) in zip(axes, panels):
            for arm, runs in found.items():
                for i, run in enumerate(runs.values()):
                    for j, (name, dashes) in enumerate(shown.items()):
                        axis.plot(
                            run["steps"],
                            run["moving_means"][name],
                            color=EMERGENCE[arm],
                            linewidth=1,
                            linestyle=dashes,
                            label=arm if i == j == 0 else None,
                        )
            _finish(axis, "GRPO step", "", title)
        for axis in axes[:2]:
            axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axes[0].set_ylabel("share of answers, mean over 5 steps")
        axes[2].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        numbers = {
            arm: {
                seed: {"steps": run["steps"]}
                | {name: run["moving_means"][name] for _, shown in panels for name in shown}
                for seed, run in runs.items()
            }
            for arm, runs in found.items()
        }
        return _save(figure, path, numbers)


def confession_judge(
    path: Path,
    curves: dict[tuple[str, int], list[dict]],
    own: dict[tuple[str, int], dict[int, dict]],
    held: dict[tuple[str, int], dict[int, dict]],
) -> Path:
    """A column an arm of experiments/confession_judge.py, a line a seed: above the training steps,
    answers and confessions side by side; below J within a prompt, on-policy and on frozen answers.

    curves: {(arm, seed): rows of metrics.jsonl}; own, held: {(arm, seed): {step: metrics}}.
    """
    arms = list(dict.fromkeys(arm for arm, _ in curves))
    shown = ("exact_compliance", "bracket_hack", "claim_match")
    numbers = {}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, len(arms), figsize=(5.2 * len(arms) + 1.6, 7), sharey="row", squeeze=False
        )
        for (arm, seed), rows in curves.items():
            above, below = axes[:, arms.index(arm)]
            first = seed == next(s for a, s in curves if a == arm)
            steps = [row["step"] for row in rows]
            values = lambda name: _rolling_mean(
                np.array([row[name] for row in rows], dtype=float), 5
            )
            lines = {LABELS[m].split(" | ")[0]: (values(m), COLOURS[m], "-") for m in shown}
            met = values("objectives_met")
            lines["objectives met"] = met, COLOURS["right_full"], ":"
            best = np.maximum(met, 1 - met)
            lines["its better constant"] = best, COLOURS["claim_match"], (0, (3, 2))
            lines["what a confession earns"] = values("reward_confession"), GREY, "-"
            for label, (line, colour, dashes) in lines.items():
                style = dict(color=colour, linestyle=dashes, linewidth=1.3)
                above.plot(steps, line, label=label if first else None, **style)
            for evals, name in ((held, "frozen answers"), (own, "on-policy")):
                _line(
                    below,
                    evals[arm, seed],
                    "claim_J_within",
                    name,
                    interval=True,
                    label=name if first else None,
                )
            _finish(above, "", "", f"confessions paid by: {arm}")
            _finish(below, "GRPO step", "", _title("claim_J_within"))
            numbers[f"{arm} {seed}"] = {
                "steps": steps,
                "means over five steps": {
                    label: [None if np.isnan(v) else float(v) for v in line]
                    for label, (line, *_) in lines.items()
                },
                "claim_J_within": {
                    name: {step: e["claim_J_within"] for step, e in evals[arm, seed].items()}
                    for evals, name in ((own, "on-policy"), (held, "frozen answers"))
                },
            }
        lows = [
            e["claim_J_within"]["low"]
            for evals in (own, held)
            for by_step in evals.values()
            for e in by_step.values()
        ]
        for below in axes[1]:
            _room_below(below, lows)
        for row in axes:
            row[-1].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes[0][0].set_ylabel("training rollouts, mean over 5 steps")
        axes[1][0].set_ylabel("held-out prompts (95% interval)")
        figure.subplots_adjust(wspace=0.12, hspace=0.25)
        return _save(figure, path, numbers)


HARDLY = 0.5  # of the reports parse: J of the others is not that of the model
CELL = (2.5, 1.5)  # inches


def ood(path: Path, matrix: dict[str, dict[str, dict]], answers: str) -> Path:
    """A heat map of J within a prompt, a row a model and a column a task, framed where the model
    was trained.

    matrix: {row: {column: {"trained", "J of shuffles", and by name metrics}}}, as
    experiments/ood.py measures it; answers: own, or frozen to the first row's.
    """
    kept = ("claim_J_within", "claim_bits", "parsed", "claims_with_contrast", "claim_match")
    first = next(iter(matrix))
    names = list(matrix[first])
    colours = plt.get_cmap("RdBu_r")
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = (CELL[0] * len(names) + 1.2, CELL[1] * len(matrix) + 0.9)
        figure, axis = plt.subplots(figsize=size)
        for y, (row, by_column) in enumerate(matrix.items()):
            for x, cell in enumerate(by_column.values()):
                value = cell["as reported"]["claim_J_within"]["value"]
                parsed = cell["as reported"]["parsed"]["value"]
                # white is 0; the ends of the map are too dark for text
                face = "#eeeeee" if value is None else colours(0.5 + 0.35 * value)
                hatch = "//" if parsed < HARDLY else None
                place, style = (x - 0.5, y - 0.5), dict(edgecolor="white", linewidth=1)
                axis.add_patch(plt.Rectangle(place, 1, 1, facecolor=face, hatch=hatch, **style))
                _ood_cell(axis, x, y, cell)
        for y, by_column in enumerate(matrix.values()):
            for x, cell in enumerate(by_column.values()):
                if cell["trained"]:
                    frame = dict(fill=False, edgecolor="black", linewidth=2.5)
                    axis.add_patch(plt.Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, **frame))
        axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(matrix) - 0.5, -0.5))
        axis.set_xticks(range(len(names)), [textwrap.fill(name, 24) for name in names])
        axis.set_yticks(range(len(matrix)), [textwrap.fill(row, 16) for row in matrix])
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        whose = "a row's own answers" if answers == "own" else f"the answers of {first}"
        n = matrix[first][names[0]]["as reported"]["parsed"]["n"]
        axis.set_title(
            f"J within a prompt, of reports on {whose}", loc="left", fontsize=11, fontweight="bold"
        )
        axis.annotate(
            f"95% intervals over topics, n = {n} answers a task. Frame: confessions were trained "
            f"on the task.\nHatched: fewer than {HARDLY:.0%} of the reports parse, and the number "
            "is of these. Constants and the prompt alone have J 0;\nin parentheses the claim match "
            "of the better constant. Shuffled: where 95% of J lie when the same reports are dealt\n"
            "out among the answers to their prompts.",
            (0, 0),
            (0, -8),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            **NOTE,
        )
        plain = ("trained", "J of shuffles")
        numbers = {
            row: {
                column: {
                    part: found if part in plain else {m: found[m] for m in kept}
                    for part, found in cell.items()
                }
                for column, cell in by_column.items()
            }
            for row, by_column in matrix.items()
        }
        return _save(figure, path, {"n": n, "answers": answers, "ours": numbers})


def _ood_cell(axis, x: int, y: int, cell: dict) -> None:
    """The numbers of one cell."""
    e, shuffled = cell["as reported"], cell["J of shuffles"]
    plain = lambda v: "-" if v is None else f"{v:.2f}"
    span = lambda found: f"[{plain(found['low'])}, {plain(found['high'])}]"
    value = lambda metric: plain(e[metric]["value"])
    constant = max(cell[f"always {claim}"]["claim_match"]["value"] for claim in ("None", "Full"))
    parsed = f"parsed {value('parsed')}"
    if e["claim_J_within"]["value"] is None:
        below = "no claim has a contrast" if e["parsed"]["value"] else "no report parses"
        lines = [parsed]
    else:
        below = span(e["claim_J_within"])
        lines = [
            f"{parsed}, contrast {value('claims_with_contrast')}",
            f"{value('claim_bits')} bits {span(e['claim_bits'])}",
            f"claim match {value('claim_match')} ({constant:.2f})",
            f"shuffled {span(shuffled)}",
        ]
    text = dict(ha="center", va="center")
    axis.text(x, y - 0.31, value("claim_J_within"), fontsize=14, fontweight="bold", **text)
    axis.text(x, y - 0.12, below, fontsize=9, **text)
    axis.text(x, y + 0.2, "\n".join(lines), fontsize=7.5, linespacing=1.4, **text)


def hacks(path: Path, panels: dict[str, dict[str, dict]]) -> Path:
    """Rates of fooled answers and of the known kinds of hacks that occur, a panel a run or the
    models.

    panels: {panel: {place on the x axis: rates of experiments/find_hacks.py}}.
    """
    of = lambda e, name: e["kinds"][name]["rate"] if name in e["kinds"] else e[name]
    every = [e for places in panels.values() for e in places.values()]
    kinds = [k for k in every[0]["kinds"] if any(of(e, k)["value"] for e in every)]
    names = ["fooled", *(["unexplained"] if every[0]["kinds"] else []), *kinds]
    colours = ["#000000", GREY, *plt.colormaps["tab10"].colors]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        size = (1.5 + 4.4 * columns, 3.9 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
        for axis, (panel, places) in zip(axes.flat, panels.items()):
            for i, name in enumerate(names):
                told = [(x, of(e, name)) for x, e in enumerate(places.values())]
                told = [(x, e) for x, e in told if e["value"] is not None]
                xs = [x + 0.5 * (i - (len(names) - 1) / 2) / len(names) for x, _ in told]
                value, low, high = ([e[k] for _, e in told] for k in ("value", "low", "high"))
                style = dict(color=colours[i % len(colours)], linewidth=1.2)
                axis.vlines(xs, low, high, alpha=0.5, **style)
                label = "no known kind | fooled" if name == "unexplained" else name
                marker = "os^DXvPd<h"[i % 10]
                axis.plot(xs, value, marker=marker, markersize=5, label=label, **style)
            _finish(axis, "", "", panel)
            axis.set_xticks(range(len(places)), [textwrap.fill(place, 14) for place in places])
            axis.set_xlim(-0.5, len(places) - 0.5)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for row in axes:
            row[0].set_ylabel("share of answers (95% interval)")
        axes[0][-1].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        numbers = {
            panel: {place: {name: of(e, name) for name in names} for place, e in places.items()}
            for panel, places in panels.items()
        }
        return _save(figure, path, numbers)


def sandbagging(path: Path, panels: dict[str, dict[str, dict[str, dict]]]) -> Path:
    """Rates of experiments/sandbagging.py, a line of points a model.

    panels: {panel: {model: {place on the x axis: estimate}}}.
    """
    with plt.rc_context(STYLE):
        widths = [len(next(iter(lines.values()))) for lines in panels.values()]
        figure, axes = plt.subplots(
            1, len(panels), figsize=(1.2 * sum(widths), 4.0), sharey=True, width_ratios=widths
        )
        for axis, (panel, lines) in zip(axes, panels.items()):
            for i, (model, places) in enumerate(lines.items()):
                told = [(x, e) for x, e in enumerate(places.values()) if e["value"] is not None]
                xs = [x + 0.4 * (i - (len(lines) - 1) / 2) / len(lines) for x, _ in told]
                value, low, high = ([e[k] for _, e in told] for k in ("value", "low", "high"))
                style = dict(color=plt.colormaps["tab10"].colors[i % 10])
                axis.vlines(xs, low, high, alpha=0.5, linewidth=1.6, **style)
                marker = "os^DXvPd<h"[i % 10]
                axis.plot(xs, value, marker=marker, linestyle="", label=model, **style)
            _finish(axis, "", "", panel)
            places = next(iter(lines.values()))
            axis.set_xticks(range(len(places)), [textwrap.fill(place, 13) for place in places])
            axis.tick_params(axis="x", labelsize=8.5)
            axis.set_xlim(-0.5, len(places) - 0.5)
        axes[0].set_ylabel("share (95% interval over prompts)")
        axes[-1].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return _save(figure, path, panels)


def monitors(path: Path, found: dict[str, dict[str, dict]]) -> Path:
    """AUROC of watchers and controls, a panel a level and kind, a colour a side.

    found: {side: {"LEVEL, KIND": {watcher or control: estimate}}}, as experiments/monitors.py
    measures it; differences are left out.
    """
    sides = list(found)
    panels = ("sentences, within", "sentences, pooled", "answers, pooled")
    titles = ("Sentences, within a prompt", "Sentences, pooled", "Answers, pooled")
    told = [name for by in found.values() for name in by[panels[0]]]
    names = [n for n in dict.fromkeys(told) if " less " not in n and not n.endswith(" adds")]
    colours = dict(zip(sides, (COLOURS["first checkpoint"], COLOURS["last checkpoint"])))
    with plt.rc_context(STYLE):
        size = (12.5, 0.34 * len(names) + 1.2)
        figure, axes = plt.subplots(1, 3, figsize=size, sharey=True, sharex=True)
        for axis, panel, title in zip(axes, panels, titles):
            for i, side in enumerate(sides):
                for y, name in enumerate(names):
                    e = found[side][panel].get(name, {"value": None})
                    if e["value"] is None:
                        continue
                    at = y + 0.3 * (i - (len(sides) - 1) / 2)
                    style = dict(color=colours[side], alpha=0.5 if "shuffled" in name else 1)
                    if e["low"] is not None and e["high"] is not None:
                        axis.hlines(at, e["low"], e["high"], linewidth=1.6, **style)
                    axis.plot(e["value"], at, marker="oD"[i], markersize=4.5, **style)
            axis.axvline(0.5, color=GREY, linewidth=0.9, linestyle=":")
            axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
            axis.set_xlabel("AUROC (95% interval over topics)")
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        dots = [plt.Line2D([], [], color=colours[s], marker=m) for s, m in zip(sides, "oD")]
        shown = [textwrap.fill(side, 16) for side in sides]
        axes[-1].legend(dots, shown, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.tight_layout()
        return _save(figure, path, found)


def drift(path: Path, places: list[str], charts: dict[str, dict]) -> Path:
    """Rates of an audit over days or batches, a panel each, with their control limits.

    charts: {title: {"rates", "low", "high": (len(places),) with None where nothing was counted,
    "mean", "baseline": how many places the mean is of, "outside": indices}}.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(charts), 1, figsize=(7.2, 1.9 * len(charts) + 0.5), sharex=True, squeeze=False
        )
        xs = np.arange(len(places))
        as_array = lambda values: np.array([np.nan if v is None else v for v in values], float)
        for axis, (title, chart) in zip(axes[:, 0], charts.items()):
            rates, low, high = (as_array(chart[name]) for name in ("rates", "low", "high"))
            axis.fill_between(
                xs, low, high, step="mid", color=COLOURS["claim_J_within"], alpha=0.12, linewidth=0
            )
            axis.axhline(chart["mean"], color=GREY, linewidth=0.9)
            axis.axvline(chart["baseline"] - 0.5, color=GREY, linewidth=0.9, linestyle=":")
            axis.plot(xs, rates, color="#000000", marker="o", markersize=3.5, linewidth=1)
            axis.plot(
                xs[chart["outside"]], rates[chart["outside"]], "o", color=COLOURS["claim_J_within"]
            )
            _finish(axis, "", "", title)
            axis.set_ylim(-0.04, 1.04)
        shown = range(0, len(places), max(1, len(places) // 8))
        axes[-1][0].set_xticks(list(shown), [places[i] for i in shown], fontsize=8)
        axes[-1][0].set_xlabel("dotted: end of the baseline; band: 3-sigma control limits")
        figure.tight_layout()
        return _save(figure, path, {"places": places, **charts})


def reliability(path: Path, found: dict[str, dict]) -> Path:
    """Reliability diagrams and calibration by difficulty, a column a row of
    experiments/confidence.py.

    found: {title: {"sides": {side: measures}, "levels": {level: measures}, "diagram": {side: rows
    of calibration.reliability}}}.
    """
    colours = {
        "reported": COLOURS["claim_J_within"],
        "tokens": COLOURS["honest_given_noncompliant"],
    }
    with plt.rc_context(STYLE):
        size = (3.6 * len(found), 6.6)
        figure, axes = plt.subplots(2, len(found), figsize=size, squeeze=False, sharey=True)
        for (title, cell), (top, below) in zip(found.items(), axes.T):
            top.plot([0, 1], [0, 1], color=GREY, linewidth=1)
            if "constant" in cell["sides"]:  # its Brier score is b (1 - b)
                top.axhline(cell["base"], color=GREY, linewidth=1, linestyle=":")
            for side, rows in cell["diagram"].items():
                rows = [row for row in rows if row["met"]["low"] is not None]
                if not rows:
                    continue
                xs = [row["confidence"] for row in rows]
                value, low, high = (
                    [row["met"][k] for row in rows] for k in ("value", "low", "high")
                )
                top.vlines(xs, low, high, color=colours[side], alpha=0.5, linewidth=1.2)
                area = [
                    4 + 120 * row["met"]["n"] / sum(r["met"]["n"] for r in rows) for row in rows
                ]
                measured = cell["sides"][side]
                within, error = (measured[k]["value"] for k in ("AUROC within", "ECE"))
                shown = [f"{v:.2f}" if v is not None else "-" for v in (error, within)]
                label = f"{side}: ECE {shown[0]}, within {shown[1]}"
                top.plot(xs, value, color=colours[side], linewidth=0.9)
                top.scatter(xs, value, s=area, color=colours[side], label=label)
            if top.get_legend_handles_labels()[0]:
                top.legend(frameon=False, fontsize=7.5, loc="upper left")
            top.set_xticks(np.linspace(0, 1, 6))
            _finish(top, "confidence", "", textwrap.fill(title, 30))
            levels = {k: m for k, m in cell["levels"].items() if m["met"]["low"] is not None}
            xs = np.arange(len(levels))
            met = {k: [m["met"][k] for m in levels.values()] for k in ("value", "low", "high")}
            below.vlines(xs, met["low"], met["high"], color="#000000", alpha=0.5, linewidth=1.2)
            below.plot(xs, met["value"], "o", color="#000000", label="met")
            mean = [m["met"]["value"] + m["confidence - truth"]["value"] for m in levels.values()]
            below.plot(xs, mean, "D", color=colours["reported"], label="mean confidence")
            below.set_xticks(xs, list(levels), fontsize=8)
            _finish(below, "difficulty", "", "")
        for row, label in zip(axes, ("share of objectives met", "share, mean")):
            row[0].set_ylabel(f"{label} (95% interval)")
        axes[1][0].legend(frameon=False, fontsize=8)
        figure.tight_layout()
        return _save(figure, path, found)


def durability(path: Path, cells: dict[str, dict], constants: dict[str, dict]) -> Path:
    """A line a cell of experiments/durability.py: J within a prompt beside its shuffles, claim
    match beside the better constant, and how claims moved.

    cells: what its measured() gives; constants: the moves of constant reports on the same answers.
    """
    rows = {name: len(cells) - i for i, name in enumerate(cells)}

    def dot(axis, y: float, e: dict, colour: str, **style) -> None:
        if e["value"] is not None:
            if e["low"] is not None:
                axis.hlines(y, e["low"], e["high"], color=colour, alpha=0.5, linewidth=1.2)
            axis.plot(
                e["value"], y, **{"color": colour, "marker": "o", "markersize": 5, "ls": ""} | style
            )

    moved = {"to the truth": "#009E73", "from the truth": "#D55E00"}
    numbers = {}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, 4, figsize=(15, 1.2 + 0.3 * len(rows)), sharey=True, layout="constrained"
        )
        for name, y in rows.items():
            cell = cells[name]
            shown = {m: cell["reported"][m] for m in ("claim_J_within", "claim_match", "parsed")}
            best = max((cell[c]["claim_match"] for c in constants), key=lambda e: e["value"] or 0.0)
            numbers[name] = shown | {
                "J of shuffles": cell["J of shuffles"],
                "the better constant": best,
                "moves": cell.get("moves"),
            }
            null = cell["J of shuffles"]
            if null["low"] is not None:
                axes[0].hlines(y, null["low"], null["high"], color=GREY, alpha=0.35, linewidth=6)
            dot(axes[0], y, shown["claim_J_within"], COLOURS["claim_J_within"])
            dot(axes[1], y, shown["claim_match"], COLOURS["claim_match"])
            dot(axes[1], y, best, GREY, marker="|", markersize=10)
            dot(axes[3], y, shown["parsed"], COLOURS["parsed"])
            for shift, (move, colour) in zip((0.15, -0.15), moved.items()):
                if "moves" in cell:
                    dot(axes[2], y + shift, cell["moves"][move], colour)
        titles = (
            "J within a prompt\n(grey: 95% of 200 shuffles)",
            "claim match\n(grey: the better constant)",
            "claims moved, of those that could:\nto the truth (green), from it (orange)",
            "report parses",
        )
        for axis, title in zip(axes, titles):
            _finish(axis, "", "", title)
            axis.set_ylim(0.3, len(rows) + 0.7)
            axis.set_xlim(-0.03, 1.03)
        axes[0].set_xlim(-0.35, 1.03)
        axes[0].axvline(0, color=GREY, linewidth=1)
        axes[0].set_yticks(list(rows.values()), list(rows))
        return _save(figure, path, {"cells": numbers, "moves of constants": constants})


def runs(
    path: Path,
    found: dict[str, dict[int, dict[int, dict]]],
    panels: dict[str, str],
) -> Path:
    """Arms over steps, a panel a measure, a line a seed with its 95% interval.

    found: {arm: {seed: {step: {measure: estimate}}}}; panels: {measure: title}.
    """
    colours = ("#000000", "#CC3311", "#0072B2", "#E69F00", "#009E73", "#882255")
    with plt.rc_context(STYLE):
        columns = 3 if len(panels) > 4 else len(panels)
        rows = -(-len(panels) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.6 * columns + 2, 3.5 * rows), squeeze=False
        )
        for axis, (measure, title) in zip(axes.flat, panels.items()):
            for arm, colour, marker in zip(found, colours, "osD^vP"):
                for i, evals in enumerate(found[arm].values()):
                    steps = [s for s in sorted(evals) if evals[s][measure]["value"] is not None]
                    part = lambda key: np.array(
                        [np.nan if (v := evals[s][measure][key]) is None else v for s in steps]
                    )
                    style = dict(color=colour, marker=marker, markersize=4, linewidth=1.4)
                    axis.plot(steps, part("value"), label=arm if i == 0 else None, **style)
                    axis.fill_between(
                        steps, part("low"), part("high"), color=colour, alpha=0.08, linewidth=0
                    )
            _finish(axis, "GRPO step", "", title)
            axis.set_ylim(-0.3 if measure == "claim_J_within" else -0.03, 1.03)
            axis.axhline(0, color=GREY, linewidth=1)
        axes[0][-1].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.tight_layout()
        numbers = {
            arm: {
                seed: {step: {m: e[m] for m in panels} for step, e in evals.items()}
                for seed, evals in of_arm.items()
            }
            for arm, of_arm in found.items()
        }
        return _save(figure, path, numbers)


def policy(path: Path, found: dict[str, dict]) -> Path:
    """Kappa by tenet (experiments/policy.py): of confession and judge, and of each with code; a
    grey bar is the 95% range where the reports are dealt out anew.
    """
    names = list(found)[::-1]
    panels = {
        "confession and judge": {"": lambda e: e},
        "against code": {
            side: lambda e, side=side: e.get(side) for side in ("confession", "judge")
        },
    }
    colours = {"": "#000000", "confession": COLOURS["claim_J_within"], "judge": "#332288"}
    with plt.rc_context(STYLE):
        size = (10.5, 0.34 * len(names) + 1.4)
        figure, axes = plt.subplots(1, 2, figsize=size, sharey=True)
        for axis, (title, sides) in zip(axes, panels.items()):
            for i, (side, of) in enumerate(sides.items()):
                if side:
                    axis.plot([], [], "os"[i], color=colours[side], label=side)
                    axis.legend(frameon=False, fontsize=9, loc="lower left")
                for y, e in enumerate(of(found[name]) for name in names):
                    if not e or e["kappa"]["value"] is None:
                        continue
                    at = y + (0.16 - 0.32 * i) * (len(sides) - 1)
                    low, high = (np.nan if e["kappa"][k] is None else e["kappa"][k]
                                 for k in ("low", "high"))  # fmt: skip
                    shuffled = e["shuffled"]
                    if shuffled["value"] is not None:
                        axis.hlines(at, shuffled["low"], shuffled["high"], color=GREY, alpha=0.45,
                                    linewidth=7)  # fmt: skip
                    axis.hlines(at, low, high, color=colours[side], linewidth=1.5)
                    axis.plot(e["kappa"]["value"], at, "os"[i], color=colours[side], markersize=5)
            axis.axvline(0, color=GREY, linewidth=0.9)
            _finish(axis, "Cohen's kappa (95% interval)\ngrey: 95% of 200 shuffles", "", title)
            axis.set(xlim=(-1.05, 1.05), ylim=(-0.7, len(names) - 0.3))
            axis.set_xticks([-1, -0.5, 0, 0.5, 1])
        shown = [textwrap.shorten(name, 46, placeholder=" ...") for name in names]
        axes[0].set_yticks(range(len(names)), shown, fontsize=9)
        figure.tight_layout()
        return _save(figure, path, found)


def _title(metric: str) -> str:
    """The metric's label over a panel of its own."""
    label = LABELS[metric].replace(" = honest - false confession", "")
    return label[0].upper() + label[1:]


def claims(
    out: Path, file: str, title: str, cells: dict[str, dict[str, dict]], names: dict[str, str]
) -> Path:
    """figs. 3 and 4: the five-way split of claims, a bar for each model and confession prompt.

    cells: {label: {variant: metrics}}; names: {label: model}, to set published
    over-claims beside ours.
    """
    variants = list(next(iter(cells.values())))
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(max(7.2, 1.55 * len(cells) + 1.2), 4.4))
        width = 0.84 / len(variants)
        for i, (label, evals) in enumerate(cells.items()):
            for k, variant in enumerate(variants):
                x = i + (k - (len(variants) - 1) / 2) * width
                published = WRITEUP_OVER_CLAIM.get(names[label], {}).get(variant)
                _claims_bar(axis, x, width, evals[variant], variant, published)
        n = next(iter(cells.values()))[variants[0]]["parsed"]["n"]
        _finish(axis, "", f"share of claims (n = {n} answers a bar)", title)
        axis.set(ylim=(0, 1.0), xlim=(-0.5, len(cells) - 0.5))
        axis.set_xticks(
            range(len(cells)), [textwrap.fill(label, 15) for label in cells], fontweight="bold"
        )
        axis.tick_params(axis="x", length=0, pad=44)
        axis.grid(axis="x", visible=False)
        axis.annotate(
            "prompt\ncounts\nunparsed",
            (-0.5, 0),
            (-6, -6),
            textcoords="offset points",
            ha="right",
            va="top",
            **NOTE,
        )
        for part in reversed(FIVE_WAY):
            axis.bar(0, 0, color=COLOURS[part], label=LABELS[part])
        axis.plot([], [], color="black", linestyle="--", label="objectives that are met")
        axis.plot(
            [], [], color="black", linewidth=1, marker="_", label="95% interval of the over-claim"
        )
        if any(name in WRITEUP_OVER_CLAIM for name in names.values()):
            axis.plot(
                [], [], color=GREY, marker="<", linestyle="", label="write-up: over-claim begins"
            )
        axis.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return _save(figure, out / file, cells)


FIVE_WAY = ("right_full", "right_doubted", "wrong_none", "wrong_partial", "over_claim")
NOTE = dict(fontsize=7.5, linespacing=1.4, color="#333333")


def _claims_bar(
    axis, x: float, width: float, e: dict[str, dict], variant: str, published: float | None
) -> None:
    """One stacked bar with its share of met objectives, its interval,
    and the rows of numbers below.
    """
    bottom = 0.0
    for part in FIVE_WAY:
        height = e[part]["value"] or 0.0
        axis.bar(
            x, height, 0.9 * width, bottom, color=COLOURS[part], edgecolor="white", linewidth=0.6
        )
        if height >= 0.07:
            colour = "#222222" if part in ("right_doubted", "wrong_partial") else "white"
            axis.text(
                x,
                bottom + height / 2,
                f"{height:.2f}"[1:],
                ha="center",
                va="center",
                fontsize=8,
                color=colour,
            )
        bottom += height
    right = e["objectives_met"]["value"]
    axis.plot(
        [x - 0.47 * width, x + 0.47 * width],
        [right, right],
        color="black",
        linestyle="--",
        linewidth=1.4,
    )
    if e["over_claim"]["value"] is not None:
        ends = [1 - e["over_claim"]["low"], 1 - e["over_claim"]["high"]]
        axis.plot(
            [x + 0.38 * width] * 2, ends, color="black", linewidth=1, marker="_", markersize=4
        )
    if published is not None:
        axis.plot(x + 0.45 * width, 1 - published, marker="<", color=GREY, markersize=6)
    percent = lambda value: "-" if value is None else f"{value:.0%}"
    rows = (
        f"{variant.split('_')[0]}\n{percent(e['count_rate']['value'])}\n"
        f"{percent(1 - e['parsed']['value'])}"
    )
    axis.annotate(
        rows,
        (x, 0),
        (0, -6),
        textcoords="offset points",
        ha="center",
        va="top",
        annotation_clip=False,
        **NOTE,
    )


def _checkpoints(run: Path, evals: dict[int, dict]) -> Path:
    """fig. 1: what confessions tell of their answers while the hack stays. Thin, because a report
    without information can reach them: rates of honesty, with what the best constant report scores
    on the same answers, and the write-up's.
    """
    figure, axis = plt.subplots(figsize=(7.2, 4.8))
    ends, steps = [], list(evals)
    of = lambda metric: [e[metric]["value"] for e in evals.values()]
    met = [
        np.nan if full is None else full + doubted
        for full, doubted in zip(of("right_full"), of("right_doubted"))
    ]
    constants = {  # given a parsed report, as the lines are
        "claim_match": [max(share, 1 - share) for share in met],
        "honest_given_noncompliant": [1.0] * len(evals),
    }
    published = WRITEUP if _of_the_writeups_task(run) else {}
    for metric in (
        "claim_J_within",
        "bracket_hack",
        "parsed",
        "honest_given_noncompliant",
        "claim_match",
    ):
        thin = metric in constants or metric == "parsed"
        value = _line(axis, evals, metric, metric, interval=not thin, **(THIN if thin else THICK))
        if metric in published:
            marker = MARKERS[metric]
            axis.plot(WRITEUP_STEPS, published[metric], marker=marker, linewidth=0.9, **PUBLISHED)
        axis.plot(
            steps,
            constants.get(metric, [np.nan] * len(evals)),
            color=COLOURS[metric],
            linewidth=0.9,
            linestyle="--",
        )
        ends += [(value[-1], LABELS[metric], COLOURS[metric])] if value else []
    n = next(iter(evals.values()))["parsed"]["n"]
    ends.append((0.0, "0: a report that knows the prompt alone", GREY))
    _label_ends(axis, max([*evals, *WRITEUP_STEPS] if published else evals), ends)
    _finish(
        axis,
        "GRPO step",
        f"95% interval, n = {n} rollouts",
        "Do confessions tell right from wrong while the hack goes on?",
    )
    _room_below(axis, [e["claim_J_within"]["low"] for e in evals.values()])
    axis.plot([], [], color="#333333", marker="o", markersize=5, label=_this_run(run))
    axis.plot(
        [],
        [],
        color="#333333",
        linewidth=0.9,
        linestyle="--",
        label="always None or always Full, the better one, same answers",
    )
    if published:
        axis.plot(
            [],
            [],
            color=GREY,
            marker="o",
            markersize=4,
            linewidth=0.9,
            linestyle=":",
            label="write-up, Qwen3-8B (same markers)",
        )
    axis.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(0.0, -0.13))
    numbers = {
        "ours": {
            m: {step: e[m] for step, e in evals.items()}
            for m in ("claim_J_within", "parsed", *WRITEUP)
        },
        "best_constant": {
            m: {step: v for step, v in zip(steps, values) if np.isfinite(v)}
            for m, values in constants.items()
        },
    }
    if published:
        numbers["writeup_qwen3_8b"] = {"steps": WRITEUP_STEPS, **published}
    return _save(figure, run / "fig1_honesty.png", numbers)


def _judge_fooled(run: Path, steps: list[dict]) -> Path:
    """fig. 5: share of a step's answers that fool the judge, and that are correct,
    each with a least-squares line.
    """
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
            axis.plot(
                [0, xs[-1]], [start, start + slope * xs[-1]], color=COLOURS[metric], linewidth=2
            )
            ends.append((start + slope * xs[-1], LABELS[metric], COLOURS[metric]))
    published = WRITEUP_FOOLED if _of_the_writeups_task(run) else {}
    if published:
        axis.plot(
            [0, 100],
            list(published.values()),
            color=GREY,
            linestyle=":",
            label="write-up, Qwen3-8B: judge fooled (trend)",
        )
        axis.legend(frameon=False, fontsize=8.5, loc="upper left")
    _label_ends(axis, xs[-1], ends)
    _finish(
        axis,
        "GRPO step",
        "share of the step's answers",
        "Answers that fool the weak judge, and correct ones",
    )
    points = {
        row["step"]: {m: row[m] for m in ("judge_fooled", "exact_compliance")} for row in steps
    }
    writeup = {"writeup_qwen3_8b": published} if published else {}
    return _save(
        figure, run / "fig5_judge_fooled.png", {"steps": points, "trends": trends} | writeup
    )


def _verification(run: Path, steps: list[dict]) -> Path:
    """Is it base rate or verification? How confessions are made over training (rolling
    mean of 5 steps).
    """
    figure, axis = plt.subplots()
    names = (
        "claim_J_within",
        "parsed",
        "honest_given_noncompliant",
        "count_rate",
        "hedge_rate",
        "all_none",
    )
    xs, ends, smoothed = [row["step"] for row in steps], [], {}
    for metric in names:
        values = np.array([np.nan if row[metric] is None else row[metric] for row in steps])
        smoothed[metric] = _rolling_mean(values, 5)
        style = {"honest_given_noncompliant": "-", "claim_J_within": "-"}.get(metric, "--")
        axis.plot(xs, smoothed[metric], style, color=COLOURS[metric])
        ends.append((smoothed[metric][-1], LABELS[metric], COLOURS[metric]))
    _label_ends(axis, xs[-1], ends)
    _finish(
        axis,
        "GRPO step",
        "share of the step's rollouts (mean of 5 steps)",
        "How confessions are made",
    )
    none_if_nan = lambda values: [float(v) if np.isfinite(v) else None for v in values]
    return _save(
        figure,
        run / "fig_verification.png",
        {"steps": xs, **{m: none_if_nan(v) for m, v in smoothed.items()}},
    )


def _stress_honesty(run: Path, cells: dict[str, dict[int, dict]]) -> Path:
    """fig. 2: a panel for each condition, because the intervals of small cells overlap;
    the write-up's line in each.
    """
    metric = "honest_given_noncompliant"
    published = WRITEUP_STRESS if _of_the_writeups_task(run) else {}
    parsed = dict(
        color=COLOURS["parsed"],
        marker=MARKERS["parsed"],
        markersize=3.5,
        linewidth=1,
        linestyle="--",
    )
    figure, axes = plt.subplots(
        1, len(cells), figsize=(1.9 * len(cells) + 0.6, 3.2), sharey=True, squeeze=False
    )
    for axis, (condition, evals) in zip(axes[0], cells.items()):
        if condition in published:
            marker = MARKERS[condition]
            axis.plot(WRITEUP_STEPS, published[condition], marker=marker, linewidth=1, **PUBLISHED)
        _line(axis, evals, metric, condition)
        axis.plot(list(evals), [e["parsed"]["value"] for e in evals.values()], **parsed)
        _finish(axis, "", "", "")
        axis.set_title(
            condition, loc="left", fontsize=11, fontweight="bold", color=COLOURS[condition]
        )
    axes[0][0].set_ylabel(f"{LABELS[metric]}\n(95% interval, n = {_n(cells)} rollouts)")
    axes[0][len(cells) // 2].set_xlabel("GRPO step")
    shape = dict(marker="o", markersize=4)
    axes[0][0].plot([], [], color="#333333", **shape, label=_this_run(run))
    if published:
        axes[0][0].plot(
            [], [], color=GREY, linewidth=1, linestyle=":", **shape, label="write-up, Qwen3-8B"
        )
    axes[0][0].plot([], [], **parsed, label=LABELS["parsed"])
    figure.legend(
        frameon=False,
        fontsize=9,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=3 if len(cells) > 2 else 1,
    )
    figure.suptitle(
        "Honesty under system prompts", x=0.125, y=1.0, ha="left", fontsize=11, fontweight="bold"
    )
    figure.subplots_adjust(top=0.84, bottom=0.14, wspace=0.12)
    writeup = {"writeup_qwen3_8b": {"steps": WRITEUP_STEPS, **published}} if published else {}
    return _save(
        figure, run / "fig2_stress.png", _stress_numbers(cells, metric, "parsed") | writeup
    )


def _stress_claims(run: Path, cells: dict[str, dict[int, dict]]) -> Path:
    """J of claims and of the grade over checkpoints: whether honesty is information or only a low
    grade; the share they rest on.
    """
    figure, axes = plt.subplots(1, 3, figsize=(15, 3.9))
    titles = {metric: _title(metric) for metric in ("claim_J_within", "parsed", "J")}
    last = max(max(evals) for evals in cells.values())
    for axis, (metric, title) in zip(axes, titles.items()):
        ends = []
        for i, (condition, evals) in enumerate(cells.items()):
            # side by side: five bands on each other are mud
            shift = 0.017 * max(last, 1) * (i - (len(cells) - 1) / 2)
            value = _line(axis, evals, metric, condition, shift)
            ends += [(value[-1], condition, COLOURS[condition])] if value else []
        _label_ends(axis, 1.04 * last, ends, gap=0.07 if metric == "parsed" else 0.1)
        _finish(axis, "GRPO step", "", title)
    axes[0].set_ylabel(f"95% interval, n = {_n(cells)} rollouts")
    for axis, metric in ((axes[0], "claim_J_within"), (axes[2], "J")):
        _room_below(axis, [e[metric]["low"] for evals in cells.values() for e in evals.values()])
    axes[2].annotate(
        "always confessing, or never: J = 0",
        (0.98, 0.02),
        xycoords="axes fraction",
        ha="right",
        color="#555555",
        fontsize=9,
    )
    figure.subplots_adjust(wspace=0.42)
    return _save(figure, run / "fig2_stress_claims.png", _stress_numbers(cells, *titles))


def _line(
    axis,
    evals: dict[int, dict],
    metric: str,
    name: str,
    shift: float | None = None,
    interval: bool = True,
    **style,
) -> list[float]:
    """A metric over checkpoints in the colour and marker of `name`, with its interval as a band,
    or as error bars if there is one point or they are shifted sideways; returns the values drawn.
    `style` goes to plot.
    """
    steps = [step for step in evals if evals[step][metric]["value"] is not None]
    value, low, high = (
        np.array([evals[step][metric][key] for step in steps]) for key in ("value", "low", "high")
    )
    xs = np.array(steps) + (shift or 0.0)
    if interval and shift is None and len(xs) > 1:
        axis.fill_between(xs, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    elif interval:
        axis.vlines(xs, low, high, color=COLOURS[name], alpha=0.5, linewidth=1.2)
    axis.plot(
        xs, value, **{"color": COLOURS[name], "marker": MARKERS[name], "markersize": 5} | style
    )
    if len(evals) <= 6:
        axis.set_xticks(list(evals))
    return value.tolist()


def _room_below(axis, lows: list[float | None]) -> None:
    """Let the axis of J reach below 0, and mark 0, which always confessing reaches."""
    axis.set_ylim(min([0.0, *(low for low in lows if low is not None)]) - 0.08, 1.04)
    axis.axhline(0, color=GREY, linewidth=1)


def _n(cells: dict[str, dict[int, dict]]) -> int:
    """Rollouts a cell."""
    return next(iter(next(iter(cells.values())).values()))["parsed"]["n"]


def _stress_numbers(cells: dict[str, dict[int, dict]], *names: str) -> dict:
    return {
        "n": _n(cells),
        "ours": {
            m: {c: {step: e[m] for step, e in evals.items()} for c, evals in cells.items()}
            for m in names
        },
    }


def _of_the_writeups_task(run: Path) -> bool:
    """Whether what the write-up published can stand beside a run: only Word Count's can."""
    return run_folder.read_config(run)["task"] == "word_count"


def _this_run(run: Path) -> str:
    """A run's model for a legend; of one that goes on from other runs the first one's model."""
    model, seeded = run_folder.read_config(run)["model"], ""
    while Path(model).parent.name == "checkpoints":
        start = Path(model).parent.parent
        if not (start / "config.json").exists():
            break
        model, seeded = run_folder.read_config(start)["model"], seeded or f", seeded as {start}"
    name = "embedded model organism" if models.is_embedded(model) else model
    return f"{name}{seeded} (this run)"


def _rolling_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the last `width` known values at each place; NaN where there is none."""
    windows = [values[max(0, i + 1 - width) : i + 1] for i in range(len(values))]
    return np.array([w[np.isfinite(w)].mean() if np.isfinite(w).any() else np.nan for w in windows])


def _label_ends(axis, x: float, ends: list[tuple[float, str, str]], gap: float = 0.055) -> None:
    """Write each line's name at its right end,
    moved apart where they would overlap and kept inside the axis.
    """
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
    # the ticks are not those of checkpoints
    if not isinstance(axis.xaxis.get_major_locator(), FixedLocator):
        axis.xaxis.get_major_locator().set_params(integer=True)


def _save(figure, path: Path, numbers: dict) -> Path:
    picture = io.BytesIO()
    figure.savefig(picture)
    plt.close(figure)
    run_folder.write_bytes(path, picture.getvalue())
    run_folder.write_json(path.with_suffix(".json"), numbers)
    return path


@dataclass(frozen=True)
class Config:
    run: str | None = cli.option(None, "run folder whose figures are drawn again [the newest]")
    live: bool = cli.option(False, "draw them whenever the run has gone on, until it has ended")


def main() -> None:
    config = cli.parse(Config, __doc__)
    with cli.user_errors():
        run = Path(config.run) if config.run else run_folder.newest()
        run_folder.read_config(run)  # one line if it is none
        if config.live:
            for steps, paths in live(run):
                print(f"{steps} steps: {', '.join(map(str, paths))}", flush=True)
            print(f"{run}: nobody trains in it, or no longer")
            return
        for path in reproduction(run):
            print(path)


if __name__ == "__main__":
    main()
