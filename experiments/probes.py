"""Linear probes and combinations of scores that are fitted on other topics than they are scored on,
and AUROC pooled and within a group with paired intervals: what experiments/monitors.py measures
with. No model is needed here.

AUROC within a group is over the pairs of a right and a wrong case of one group, such as the
answers to one prompt: whatever knows the group alone has .5.
"""

import functools
import math
import random
from dataclasses import dataclass

import numpy as np
import torch

from intervals import (
    area,
    area_within,
    auroc,
    bootstrapped,
    contrasts,
    estimate,
    of_pairs,
    ranks,
    won,
)

FOLDS = 6
PENALTIES = (0.03, 0.3, 3.0)  # of standardised features
SHUFFLED_PROBES = 20


# ------------------------------------------------------------------------------------------- probes


def folds_of(topics: list[str]) -> np.ndarray:
    """(n,) the fold of each case: topics are dealt into FOLDS."""
    names = sorted(set(topics))
    random.Random(0).shuffle(names)
    return np.array([names.index(topic) % FOLDS for topic in topics])


def probe(
    features: torch.Tensor, labels: torch.Tensor, folds: np.ndarray, device="cpu"
) -> tuple[torch.Tensor, list[int]]:
    """((n, C) scores, the layer that each fold chose for the first column) of ridge regressions on
    features (n, L, D), one for each column of labels (n, C).

    A fold is scored by what was fitted on the others. Its layer and penalty are those of the least
    squared error where one more fold was left out, in turn: the scored fold takes no part in it.
    Sums over folds are added up, so that every fit costs a factorisation of (D, D) alone.
    """
    n, layers, _ = features.shape
    names = sorted(set(folds.tolist()))
    rows = {f: torch.from_numpy(np.flatnonzero(folds == f)) for f in names}
    y = {f: labels[rows[f]].to(device, torch.float64) for f in names}  # (n_f, C)
    shape = (len(names), layers, len(PENALTIES), labels.shape[1])
    errors = torch.zeros(shape, dtype=torch.float64)
    scores = torch.zeros(n, *shape[1:], dtype=torch.float64)
    for layer in range(layers):
        x = {f: features[rows[f], layer].to(device, torch.float64) for f in names}  # (n_f, D)
        sums = {
            f: (len(x[f]), x[f].sum(0), y[f].sum(0), x[f].T @ x[f], x[f].T @ y[f]) for f in names
        }
        for a, first in enumerate(names):
            for b in range(a, len(names)):
                fitted = [sums[f] for f in names if f not in (first, names[b])]
                if not fitted:
                    continue
                count, of_x, of_y, xx, xy = (sum(part) for part in zip(*fitted))
                mean, base = of_x / count, of_y / count
                xx = xx / count - mean[:, None] * mean
                # a feature that does not vary has a variance of rounding errors
                varies = xx.diagonal() > 1e-10 * (xx.diagonal() + mean**2)
                scale = torch.where(varies, xx.diagonal(), 1.0).sqrt()
                xx = xx / scale[:, None] / scale
                xy = (xy / count - mean[:, None] * base) / scale[:, None]
                for k, penalty in enumerate(PENALTIES):
                    ridge = xx + penalty * torch.eye(len(xx), dtype=xx.dtype, device=device)
                    weights = torch.cholesky_solve(xy, torch.linalg.cholesky(ridge))
                    weights = weights / scale[:, None]  # (D, C)
                    told = {f: base + (x[f] - mean) @ weights for f in {first, names[b]}}
                    if a == b:
                        scores[rows[first], layer, k] = told[first].cpu()
                    else:
                        miss = {f: ((told[f] - y[f]) ** 2).sum(0).cpu() for f in told}
                        errors[a, layer, k] += miss[names[b]]
                        errors[b, layer, k] += miss[first]
    best = errors.flatten(1, 2).argmin(1)  # (F, C)
    place = best[[names.index(f) for f in folds.tolist()]]  # (n, C)
    chosen = scores.flatten(1, 2).gather(1, place[:, None])[:, 0]
    return chosen, (best[:, 0] // len(PENALTIES)).tolist()


def with_shuffles(hits: np.ndarray) -> torch.Tensor:
    """(n, 1 + SHUFFLED_PROBES): the truth, and permutations of it."""
    rng = np.random.default_rng(0)
    columns = [hits, *(rng.permutation(hits) for _ in range(SHUFFLED_PROBES))]
    return torch.from_numpy(np.stack(columns, axis=1).astype(float))


def combined(columns: np.ndarray, hits: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(n,) scores of a logistic regression on columns (n, F), by ranks, each fold by what was
    fitted on the others; a small penalty keeps it finite where all can be told apart.
    """
    one = np.ones(len(hits))
    x = np.stack([ranks(column, one) / len(hits) - 0.5 for column in columns.T] + [one], axis=1)
    penalty = np.diag([1.0] * columns.shape[1] + [1e-6])
    out = np.zeros(len(hits))
    for fold in set(folds.tolist()):
        fitted, w = folds != fold, np.zeros(x.shape[1])
        for _ in range(25):  # Newton's steps
            p = 1 / (1 + np.exp(-x[fitted] @ w))
            gradient = x[fitted].T @ (hits[fitted] - p) - penalty @ w
            curvature = (x[fitted] * (p * (1 - p))[:, None]).T @ x[fitted] + penalty
            w = w + np.linalg.solve(curvature, gradient)
        out[~fitted] = x[~fitted] @ w
    return out


# -------------------------------------------------------------------------------------------- AUROC


@dataclass(frozen=True)
class Cases:
    """What is right and what is not, at one level."""

    hits: np.ndarray  # (n,) bool
    topics: list[str]
    groups: list[tuple]  # (n,) cases that are compared within a prompt have the same one
    answers: np.ndarray  # (n,) integers: of which answer each is
    folds: np.ndarray  # (n,)

    @functools.cached_property
    def pairs(self) -> np.ndarray:
        return contrasts(self.hits, self.groups)


def within(values: np.ndarray, of: Cases) -> dict:
    """{value, low, high, n: pairs} of the AUROC within a group."""
    return area_within(of.topics, of.pairs, values)


def pooled(values: np.ndarray, of: Cases) -> dict:
    """{value, low, high, n: cases} of the AUROC of all of them."""
    return area(of.topics, values, of.hits)


def less_within(a: np.ndarray, b: np.ndarray, of: Cases) -> dict:
    """{value, low, high, n: pairs} of AUROC within a prompt of a less that of b."""
    return of_pairs(of.topics, of.pairs, won(a, of.pairs) - won(b, of.pairs))


def less_pooled(a: np.ndarray, b: np.ndarray, of: Cases) -> dict:
    less = lambda a, b, hits, weights: auroc(a, hits, weights) - auroc(b, hits, weights)
    return bootstrapped(less, of.topics, a, b, of.hits)


def of_shuffles(columns: list[np.ndarray], of: Cases) -> dict[str, dict]:
    """{kind: mean and 95% range of the AUROC of several columns}."""
    one, nothing = np.ones(len(of.hits)), [math.nan]
    found = {
        "within": [won(c, of.pairs).mean() for c in columns] if of.pairs.size else nothing,
        "pooled": [auroc(column, of.hits, one) for column in columns],
    }
    return {
        kind: estimate(np.mean(values), *np.percentile(values, [2.5, 97.5]), len(columns))
        for kind, values in found.items()
    }
