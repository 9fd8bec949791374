"""Do probabilities mean what they say? Measures of confidences that an objective is met, beside
what confidences without information would score on the same answers.

    ECE                  mean distance of confidence and truth over BINS bins of equal width. Every
                         constant at the base rate has 0, so it says nothing without the next ones
    Brier                mean of (p - t)^2, p a confidence and t its truth (0 or 1)
    skill over X         1 - Brier / Brier of X; 1 is the truth, 0 no better than X, where X is
        constant         the base rate of the same answers
        level alone      the rate of each level of difficulty
        prompt alone     the rate of the objective among the answers to its prompt: the best that
                         any report can say that knows the prompt and not the answer. All three are
                         found in hindsight, which no report can: with four answers a prompt the
                         last one's Brier is a quarter too low
    AUROC                how well confidences rank met objectives above unmet ones, .5 for constants
    AUROC within         the same of pairs of answers to one prompt, by one objective: .5 for every
                         report that depends on the prompt alone, however well it knows which
                         prompts are hard
    confidence - truth   of the means: above 0 over-confident
    spread               standard deviation of the confidences: 0 where they have collapsed

Intervals are bootstraps over topics (intervals.py). That of ECE is not centred on its value: noise
in the bins only adds to it.
"""

import dataclasses
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import numpy as np

from baselines import dealt_out
from intervals import area_within, auroc, bootstrapped, contrasts, estimate, mean, rate, won
from rollout import Rollout

BINS = 10
Confidences = list[tuple[float | None, ...] | None]  # of rollouts; None where there is none


@dataclass(frozen=True)
class Cases:
    """Confidences and what was true, an entry an objective of an answer, (n,) each."""

    p: np.ndarray
    t: np.ndarray  # 0.0 or 1.0
    topics: list[str]
    levels: np.ndarray  # names of difficulties
    groups: np.ndarray  # integers: the same prompt and objective
    answers: np.ndarray  # integers: of which answer each is
    asked: int  # how many there would be, had every report all of its confidences


def reported(rollouts: list[Rollout]) -> Confidences:
    """What the reports themselves say."""
    return [getattr(rollout.report, "confidences", None) for rollout in rollouts]


def levels_of(rollout: Rollout, task: ModuleType) -> list[str]:
    """The difficulty of each objective: the problem's level, or the words that are asked for."""
    n = len(rollout.truth.objectives)
    if hasattr(task, "level"):
        return [f"level {task.level(rollout.x)}"] * n
    rows = task.measured(rollout.x, rollout.truth)[:n]
    return [f"{row['target']} words" if "target" in row else "all" for row in rows]


def cases_of(
    rollouts: list[Rollout],
    confidences: Confidences,
    task: ModuleType,
    kept: list[int] | None = None,
) -> Cases:
    """The confidences that there are; kept: of these objectives alone."""
    groups: dict[tuple, int] = {}
    rows, asked = [], 0
    for k, (rollout, told) in enumerate(zip(rollouts, confidences, strict=True)):
        truths, levels = rollout.truth.objectives, levels_of(rollout, task)
        chosen = range(len(truths)) if kept is None else kept
        asked += len(chosen)
        for i in chosen if told else ():
            p, t, level = told[i], truths[i], levels[i]
            if p is not None:
                group = groups.setdefault((rollout.system, rollout.x, i), len(groups))
                rows.append((p, float(t), task.cluster(rollout.x), level, group, k))
    p, t, topics, levels, places, answers = map(list, zip(*rows) if rows else [[]] * 6)
    whole = (np.array(numbers, int) for numbers in (places, answers))
    return Cases(np.array(p, float), np.array(t, float), topics, np.array(levels), *whole, asked)


# ---------------------------------------------------------------------- measures of columns (n,)


def bins_of(p: np.ndarray) -> np.ndarray:
    """(n,) 0 to BINS - 1."""
    return np.minimum((p * BINS).astype(int), BINS - 1)


def one_hot(values: np.ndarray) -> np.ndarray:
    """(n, distinct values)."""
    distinct, place = np.unique(values, return_inverse=True)
    return np.eye(len(distinct))[place]


def ece(p: np.ndarray, t: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.abs((weights * (p - t)) @ one_hot(bins_of(p))).sum(-1) / weights.sum(-1)


def variance_by(kinds: np.ndarray, t: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The Brier score of the rate of t in each of kinds."""
    held, met = weights @ kinds, (weights * t) @ kinds
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = np.where(held > 0, met * (1 - met / held), 0.0)
    return lost.sum(-1) / weights.sum(-1)


def spread(p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    variance = mean(p * p, weights) - mean(p, weights) ** 2
    return np.sqrt(np.maximum(0.0, variance))


def skill(kinds: np.ndarray, squared: np.ndarray, t: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Over what says of each case the rate in its one of kinds (n, kinds)."""
    return 1 - mean(squared, weights) / variance_by(kinds, t, weights)


def statistics(cases: Cases) -> dict[str, tuple]:
    """{measure: (statistic of columns and weights (..., n), columns)}."""
    p, t = cases.p, cases.t
    squared = (p - t) ** 2
    over = lambda kinds: (partial(skill, kinds), squared, t)
    return {
        "ECE": (ece, p, t),
        "Brier": (mean, squared),
        "skill over constant": over(np.ones((len(p), 1))),
        "skill over level alone": over(one_hot(cases.levels)),
        "skill over prompt alone": over(one_hot(cases.groups)),
        "AUROC": (auroc, p, t),
        "confidence - truth": (mean, p - t),
        "spread": (spread, p),
    }


def measures(cases: Cases) -> dict[str, dict]:
    """{measure: {value, low, high, n}}, and "given", the share of confidences that are there."""
    given = estimate(len(cases.p) / max(1, cases.asked), math.nan, math.nan, cases.asked)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            name: bootstrapped(of, cases.topics, *columns)
            for name, (of, *columns) in statistics(cases).items()
        }
    pairs = contrasts(cases.t == 1, cases.groups)
    return {"given": given, **found, "AUROC within": area_within(cases.topics, pairs, cases.p)}


# ------------------------------------------------------------------------- without information


def baselines(cases: Cases) -> dict[str, Cases]:
    """What knows the base rate, the level or the prompt alone, in hindsight, of these answers."""
    kinds = {
        "constant": np.ones((len(cases.t), 1)),
        "level alone": one_hot(cases.levels),
        "prompt alone": one_hot(cases.groups),
    }
    rates = {name: of @ ((cases.t @ of) / of.sum(0)) for name, of in kinds.items()}
    return {name: dataclasses.replace(cases, p=p) for name, p in rates.items()}


def shuffled(cases: Cases) -> dict[str, dict]:
    """measures() where the confidences of whole reports are dealt out anew among the answers to
    their prompt (baselines.dealt_out): the mean and the 95% range of the shuffles.
    """
    found, pairs = defaultdict(list), contrasts(cases.t == 1, cases.groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        for p in dealt_out(cases.p, cases.groups.tolist(), cases.answers):
            for name, (of, *columns) in statistics(dataclasses.replace(cases, p=p)).items():
                found[name].append(of(*columns, np.ones(len(p))))
            found["AUROC within"].append(won(p, pairs).sum() / len(pairs[0]))
        ends = {name: np.percentile(values, [2.5, 97.5]) for name, values in found.items()}
    return {
        name: estimate(np.mean(values), *ends[name], len(values)) for name, values in found.items()
    }


# -------------------------------------------------------------------------------- diagram, levels


def reliability(cases: Cases) -> list[dict]:
    """A row for each bin with a case: mean confidence and the rate at which objectives are met."""
    rows, bins = [], bins_of(cases.p)
    for k in np.unique(bins):
        here = np.flatnonzero(bins == k)
        met = rate([cases.topics[i] for i in here], cases.t[here])
        rows.append({"bin": int(k), "confidence": float(cases.p[here].mean()), "met": met})
    return rows


def by_level(cases: Cases) -> dict[str, dict[str, dict]]:
    """{level: measures() of its cases alone, and "met", the rate of truth}. Of what was not given
    no level is known.
    """
    found = {}
    for level in np.unique(cases.levels):
        here = np.flatnonzero(cases.levels == level)
        part = dataclasses.replace(
            cases,
            topics=[cases.topics[i] for i in here],
            asked=len(here),
            **{k: getattr(cases, k)[here] for k in ("p", "t", "levels", "groups", "answers")},
        )
        found[str(level)] = measures(part) | {"met": rate(part.topics, part.t)}
        del found[str(level)]["given"]
    return found
