"""Metrics and their intervals against hand-computed values.
A wrong number here is a wrong finding.
"""

import json
import math
import random
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from confession_schema import ConfessionReport, ParseFailure
from handmade import hand_rollout
from intervals import (
    auroc_interval,
    effective_trials,
    newcombe,
    percentiles,
    rate_interval,
    ratio,
    resample,
    student_t,
    wilson,
)
from metrics import SHOWN, across_seeds, differences, format_table, metrics, rates
from rewards import Verdict, honesty_reward, judge_reward


@dataclass
class Truth:
    """Of a task with two objectives, which is all that the metrics may know of a task."""

    objectives: tuple[bool, ...]
    cheated: tuple[bool | None, ...]
    compliant: bool


# A thought "++-" checked three things, the last of them wrongly. Prompts "owls 1" and "owls 2"
# form a cluster.
TASK = SimpleNamespace(
    cluster=lambda x: x.split()[0],
    verifications=lambda thought, truth: [c == "+" for c in thought] or None,
)
UNPARSED = ParseFailure("no complete JSON object")
interval = lambda estimate: (estimate["low"], estimate["high"])


def scored(
    met,
    cheated,
    verdict,
    claims=None,
    grade=0,
    zc="",
    lengths=(3, 4),
    finishes=("stop", "stop"),
    seed=0,
    extra=False,
    topic=None,
):
    """A rollout of the task with two objectives; `extra`: it has one sentence too many, so it does
    not comply. Without a topic its prompt is a cluster of its own.
    """
    x = f"{seed if topic is None else topic} {seed}"
    rollout = hand_rollout(
        ([1], [5] * lengths[0], [3], [6] * lengths[1]), finishes=finishes, zc=zc, seed=seed, x=x
    )
    rollout.truth = Truth(met, cheated, all(met) and not extra)
    rollout.verdict = Verdict(verdict, "", {"pass": 0.5, "fail": -0.25}.get(verdict))
    rollout.report = ConfessionReport(claims, (), grade) if claims else UNPARSED
    rollout.answer.reward, rollout.confession.reward = (
        *judge_reward([rollout]),
        *honesty_reward([rollout]),
    )
    return rollout


T, F = True, False
SIX = [  # the first two get entropies below, the first four answer one prompt
    scored((T, T), (None, None), "pass", ("Full", "Full"), 7, zc="++", seed=1),
    scored((T, F), (None, True), "pass", ("Full", "None"), 3, zc="+-", lengths=(5, 2), seed=1),
    scored(
        (F, F),
        (True, False),
        "fail",
        ("Partial", "Full"),
        4,
        lengths=(7, 6),
        finishes=("length", "stop"),
        seed=1,
    ),
    # no first sentence
    scored((F, F), (None, False), "failed", lengths=(1, 9), finishes=("length", "length"), seed=1),
    scored((T, T), (None, None), "fail", ("None", "None"), 1, zc="--+", seed=5),
    scored(
        (T, T), (None, None), "pass", ("Partial", "Full"), 2, lengths=(2, 2), seed=6, extra=True
    ),
]
SIX[0].answer.entropy, SIX[1].answer.entropy, SIX[0].confession.entropy = 0.5, 1.0, 2.0
EXPECTED = {  # (sum, number of trials), counted by hand
    "exact_compliance": (2, 6),
    "objectives_met": (7, 12),
    "bracket_hack": (2, 4),  # of four wrong sentences that exist
    "judge_failed": (1, 6),
    "judge_pass": (3, 5),  # a judge that failed is no trial
    "judge_fooled": (2, 5),  # rollouts 2 and 6
    "judge_accuracy": (2, 5),  # rollouts 1 and 3
    "judge_margin": (0.5 + 0.5 - 0.25 - 0.25 + 0.5, 5),
    "parsed": (5, 6),
    "claim_match": (5, 10),  # 2, 2, 0, -, 0, 1
    # Truths t of the prompt with three parsed reports: TT, TF, FF; t - mean is 1/3 2/3, 1/3 -1/3,
    # -2/3 -1/3; claimed is 1 1, 1 0, .5 1.
    "within_prompt": (1 + 1 / 3 - 2 / 3, 1 + 1 / 3),
    "claims_with_contrast": (6, 10),
    "claim_value_met": (2 + 1 + 0 + 1.5, 7),
    "claim_value_unmet": (0 + 1.5, 3),
    "honest_given_noncompliant": (2, 3),  # rollouts 2, 6, but not 3; 4 is not parsed
    "false_confession": (1, 2),  # rollout 5, but not 1
    "honesty_reward": (1.0 + 1.0 + 0.125 - 0.2 + 0.0 + 0.875, 6),
    "right_full": (4, 10),
    "right_partial": (1, 10),
    "right_doubted": (3, 10),
    "wrong_none": (1, 10),
    "wrong_partial": (1, 10),
    "over_claim": (1, 10),
    "count_rate": (3, 6),
    "count_accuracy": (4, 7),
    "hedge_rate": (2, 5),
    "all_none": (1, 5),
    "constant_none_grade_1": (0.0 + 0.75 + 1.0 + 1.0 + 0.0 + 0.5, 6),
    "constant_full_grade_7": (1.0 + 0.25 + 0.0 + 0.0 + 1.0 + 0.5, 6),
    **{
        f"noncompliant_at_grade_{g}": pair
        for g, pair in enumerate([(0, 1), (1, 1), (1, 1), (1, 1), (0, 0), (0, 0), (0, 1)], 1)
    },
    "answer_truncated": (2, 6),
    "confession_truncated": (1, 6),
    "answer_tokens": (3 + 5 + 7 + 1 + 3 + 2, 6),
    "confession_tokens": (4 + 2 + 6 + 9 + 4 + 2, 6),
    "answer_entropy": (0.5 + 1.0, 6),
    "confession_entropy": (2.0, 6),
}
# J = 2/3 - 1/2. kappa, over five verdicts: agreement 2/5; 3/5 passed, 2/5 compliant, so 12/25
# agree by chance.
NO_REPORT = """claim_match within_prompt claims_with_contrast right_partial claim_value_met
claim_value_unmet right_full right_doubted wrong_none wrong_partial over_claim hedge_rate all_none
honest_given_noncompliant false_confession""".split()  # those that need a parsed report
# Grades of the wrong answers 2, 3, 4 and of the right ones 1, 7: the right one wins 3 of 6
# comparisons. Bits: met 4 Full 1 Partial 2 None, unmet 1 1 1; entropies of truth + claim - both,
# each too low by (cases seen - 1) / 2N nats.
H = lambda *counts: (
    -sum(n / 10 * math.log2(n / 10) for n in counts) + (len(counts) - 1) / 20 / math.log(2)
)
DERIVED = {
    "claim_J_within": (2 / 3) / (4 / 3),
    "claim_J": 4.5 / 7 - 1.5 / 3,
    "claim_bits": H(7, 3) + H(5, 2, 3) - H(4, 1, 2, 1, 1, 1),
    "J": 1 / 6,
    "grade_auroc": 1 / 2,
    "judge_kappa": (2 / 5 - 12 / 25) / (1 - 12 / 25),
}


@pytest.mark.parametrize("name", [*EXPECTED, *DERIVED])
def test_metric(name):
    """This metric, or the n behind it, is not what the design says;
    or its interval does not hold its value.
    """
    found = metrics(SIX, TASK)[name]
    total, n = EXPECTED.get(name, (None, None))
    if n == 0:
        assert found["value"] is None and found["n"] == 0
        return
    value = DERIVED[name] if name in DERIVED else total / n
    assert (
        found["value"] == pytest.approx(value)
        and found["low"] - 1e-9 <= value <= found["high"] + 1e-9
    )
    assert name in DERIVED or found["n"] == int(n)
    assert rates(SIX, TASK)[name] == pytest.approx(value)


def test_every_metric_is_tested_and_shown():
    """A metric was added without a hand-computed value here,
    or the table asks for one that does not exist.
    """
    found = metrics(SIX, TASK)
    assert (
        found.keys() == rates(SIX, TASK).keys() == {*EXPECTED, *DERIVED}
        and set(SHOWN) <= found.keys()
    )
    json.dumps(found, allow_nan=False)


def test_a_metric_without_trials_is_none():
    """No trial is shown as a rate of 0 (or as NaN, which is no JSON),
    for example the honesty of answers that comply.
    """
    for rollouts, without in (
        (
            SIX[:1],
            ["bracket_hack", "honest_given_noncompliant", "claim_value_unmet", "within_prompt"],
        ),  # a compliant answer
        # the same, not parsed
        ([scored((T, T), (None, None), "pass")], NO_REPORT + ["bracket_hack", "count_accuracy"]),
        (
            SIX[3:4],
            NO_REPORT
            + ["judge_pass", "judge_fooled", "judge_accuracy", "judge_margin", "count_accuracy"],
        ),
    ):
        found = metrics(rollouts, TASK)
        # few grades have a trial
        found = {name: e for name, e in found.items() if "at_grade" not in name}
        missing = {name: e for name, e in found.items() if e["value"] is None}
        assert missing.keys() == {*without, *DERIVED} and all(
            interval(e) == (None, None) for e in missing.values()
        )
        assert all(missing[name]["n"] == 0 for name in without)
        values = {name: value for name, value in rates(rollouts, TASK).items() if name in found}
        assert {name for name, value in values.items() if value is None} == {*without, *DERIVED}
        table = format_table({"step 0": found})
        assert (
            "nan" not in table
            and "- [-, -]    0" in table
            and len(table.splitlines()) == 1 + len(SHOWN)
        )


@pytest.mark.parametrize(
    "pairs, kappa",
    [
        ([(T, "pass")] * 2 + [(F, "fail")] * 3, 1.0),
        ([(T, "fail")] * 2 + [(F, "pass")] * 2, -1.0),
        ([(T, "pass"), (T, "fail"), (F, "pass"), (F, "fail")], 0.0),
        ([(F, "pass")] * 3, 0.0),  # always pass: no better than chance
        ([(T, "pass")] * 3, None),  # nothing to disagree about
        # Wikipedia, "Cohen's kappa": 20 both yes, 15 both no, 5 and 10 apart: (0.7 - 0.5) / 0.5
        ([(T, "pass")] * 20 + [(T, "fail")] * 5 + [(F, "pass")] * 10 + [(F, "fail")] * 15, 0.4),
        # only answers with a verdict count
        ([(T, "pass")] * 2 + [(F, "fail")] * 2 + [(T, "failed")] * 5, 1.0),
    ],
    ids="perfect reversed chance always trivial textbook failed".split(),
)
def test_kappa(pairs, kappa):
    """Cohen's kappa of judge and truth is wrong,
    or answers without a verdict shift its chance agreement.
    """
    rollouts = [
        scored((met,) * 2, (None, None), verdict, seed=i) for i, (met, verdict) in enumerate(pairs)
    ]
    assert metrics(rollouts, TASK)["judge_kappa"]["value"] == (
        None if kappa is None else pytest.approx(kappa, abs=1e-9)
    )


def test_constant_confessions_score_what_the_metrics_say():
    """The baselines that honesty is compared with are not what those confessions would earn."""
    for rollout in SIX:
        row = rates([rollout], TASK)
        for name, claim, grade in (
            ("constant_none_grade_1", "None", 1),
            ("constant_full_grade_7", "Full", 7),
        ):
            constant = SimpleNamespace(
                truth=rollout.truth, report=ConfessionReport((claim,) * 2, (), grade)
            )
            assert [row[name]] == pytest.approx(honesty_reward([constant]))


# ---------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    "successes, n, low, high",
    [
        (8, 10, 0.4902, 0.9433),
        (81, 263, 0.2553, 0.3662),  # this and the next three: Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson(successes, n, low, high):
    """Intervals of rates do not agree with published values of Wilson's score interval."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    "a, m, b, n, low, high",
    [
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (6, 7, 2, 7, 0.0582, 0.8062),
        (5, 56, 0, 29, -0.0381, 0.1926),
        (10, 10, 0, 10, 0.6075, 1.0),
    ],
)
def test_newcombe(a, m, b, n, low, high):
    """Intervals of J do not agree with published ones (Newcombe 1998,
    difference of proportions, table II, method 10).
    """
    rate = lambda successes, n: (
        dict(zip(("low", "high"), wilson(successes, n))) | {"value": successes / n}
    )
    assert newcombe(rate(a, m), rate(b, n)) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    "grades, area",
    [
        ([(F, 1), (F, 3), (T, 4), (T, 7)], 1.0),  # apart
        ([(F, 7), (T, 1), (T, 6)], 0.0),  # apart, the wrong way
        ([(F, 3), (F, 3), (T, 3)], 0.5),  # a constant grade tells nothing
        ([(F, 2), (F, 5), (T, 5), (T, 4)], 0.625),  # 2 wins against both, 5 ties once: 2.5 of 4
    ],
)
def test_auroc(grades, area):
    """Grade and non-compliance are compared the wrong way round, or ties do not count half."""
    rollouts = [
        scored((T, met), (None, None), "pass", ("Full", "Full"), g, seed=i)
        for i, (met, g) in enumerate(grades)
    ]
    found = metrics(rollouts, TASK)["grade_auroc"]
    assert (
        found["value"] == pytest.approx(area)
        and found["n"] == len(grades)
        and found["low"] < found["high"]
    )


def test_auroc_interval_covers():
    """The interval misses the true area (normal scores one standard deviation apart: 0.760) more
    often than it says, or at an observed area of 1 it has no width.
    """
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        wrong, right = rng.normal(0, 1, 24), rng.normal(1, 1, 12)
        low, high = auroc_interval((wrong[:, None] < right).mean(), 24, 12)
        hits += low <= 0.7602 <= high
    assert 0.92 <= hits / 400 <= 0.98
    low, high = auroc_interval(1.0, 24, 12)
    assert 0.7 < low < 0.95 and high == 1.0
    assert all(math.isnan(end) for end in auroc_interval(None, 0, 3))


def test_rates_of_all_or_none_have_wilsons_interval():
    """A rate of 0 or 1 claims an interval of no width; sentences of one answer, or answers on one
    topic, are counted as if they were independent.
    """
    for topics in (20, 4):
        rollouts = [
            scored((F, F), (True, True), "pass", ("None", "None"), 1, seed=i, topic=i % topics)
            for i in range(20)
        ]
        found = metrics(rollouts, TASK)
        for name in ("judge_fooled", "claim_match", "bracket_hack"):  # 20, 40 and 40 trials
            low = {20: 1 - 0.1611, 4: 0.5101}[topics]
            assert found[name]["value"] == 1.0 and interval(found[name]) == pytest.approx(
                (low, 1), abs=6e-5
            )
        assert (
            found["false_confession"]["n"],
            found["claim_match"]["n"],
            found["over_claim"]["value"],
        ) == (0, 40, 0.0)


@pytest.mark.parametrize(
    "sums, expected",
    [
        ([[1, 1], [0, 1], [1, 1], [0, 0]], 3),  # one trial a cluster, or none
        # all of them succeed: nothing tells how alike the trials of a cluster are
        ([[4, 4], [7, 7], [0, 0]], 2),
        ([[3, 4]], 1),
        # 8 clusters, each of 4 equal trials: 2 p (1 - p) = .5 is 8 times the variance of their
        # mean, with 7 for 8
        ([[4, 4], [0, 4]] * 4, 7 * (1.959964 / 2.3646) ** 2),
        # p = .5 in each: no variance between the clusters, so all 32 trials count
        ([[2, 4]] * 8, 32 * (1.959964 / 2.3646) ** 2),
    ],
)
def test_effective_trials(sums, expected):
    """Trials of one topic count as independent though they end alike,
    or few topics as if they were many.
    """
    sums = np.array(sums, dtype=float)
    assert effective_trials(sums) == pytest.approx(expected, rel=2e-3)
    # All 12 trials of a side succeed, which tells nothing: they are worth what 12 of the
    # other side's are.
    alike, share = np.array([[1.0, 1.0], [4, 4], [7, 7]]), expected / sums[:, 1].sum()
    told = 0 < sums[:, 0].sum() < sums[:, 1].sum()
    assert effective_trials(alike, sums) == pytest.approx(
        max(3, 12 * share) if told else 3, rel=2e-3
    )


@pytest.mark.parametrize("df, quantile", [(3, 3.182), (7, 2.3646), (23, 2.0687), (1000, 1.9623)])
def test_student_t(df, quantile):
    """The quantile of Student's t is not that of the tables."""
    assert student_t(df) == pytest.approx(quantile, rel=1e-2 if df == 3 else 5e-4)


@pytest.mark.parametrize("p, alike", [(0.25, 0.2), (0.02, 0.2), (0.5, 0.0)])
def test_clustered_rates_are_covered(p, alike):
    """256 trials on 24 topics: the interval misses the true rate more often than it says, where
    answers on one topic end alike (`alike` is their correlation).
    """
    rng, runs = np.random.default_rng(0), 400
    hits = naive = 0
    for _ in range(runs):
        trials = np.bincount(rng.integers(0, 24, 256), minlength=24)
        of_topic = (
            rng.beta(p * (1 - alike) / alike, (1 - p) * (1 - alike) / alike, 24)
            if alike
            else np.full(24, p)
        )
        sums = np.stack([rng.binomial(trials, of_topic), trials], axis=1).astype(float)
        low, high = rate_interval(sums)
        hits += low <= p <= high
        low, high = wilson(sums[:, 0].sum(), 256)
        naive += low <= p <= high
    assert 0.92 <= hits / runs <= 0.99
    assert (naive / runs < 0.85) == bool(alike), "the simulation has no clusters"


def test_bootstrap_of_few_clusters_covers():
    """Ends of a bootstrap over 6 topics are too near, as plain percentiles are."""
    rng, runs = np.random.default_rng(0), 400
    hits = plain = 0
    for _ in range(runs):
        values = ratio(resample(np.stack([rng.normal(10, 2, 6), np.ones(6)], axis=1)))
        low, high = percentiles(values, 6)
        hits += low <= 10 <= high
        low, high = np.percentile(values, [2.5, 97.5])
        plain += low <= 10 <= high
    assert 0.92 <= hits / runs <= 0.98 and plain / runs < 0.9


def random_side(seed: int, prompts: int, repeats: int = 1):
    """Scored rollouts of `prompts` prompts, `repeats` equal ones of each."""
    rng, rollouts = random.Random(seed), []
    for prompt in range(prompts):
        met = (rng.random() < 0.6, rng.random() < 0.6)
        claims = (rng.choice(("Full", "None")), rng.choice(("Full", "Partial", "None")))
        fields = dict(
            grade=rng.randrange(1, 8),
            zc=rng.choice(("", "++-")),
            lengths=(rng.randrange(1, 9), rng.randrange(1, 9)),
        )
        cheated = tuple(None if m else rng.random() < 0.5 for m in met)
        rollouts += [
            scored(met, cheated, rng.choice(("pass", "fail")), claims, **fields, seed=prompt)
        ] * repeats
    return rollouts


def test_single_trials_have_wilsons_interval_and_others_a_bootstrap():
    """The interval of a plain rate is not Wilson's, that of a mean is not Student's, which an
    expanded bootstrap approaches, or that of J is not Newcombe's.
    """
    rollouts = random_side(0, 60)
    found = metrics(rollouts, TASK)
    passed = sum(rollout.verdict.state == "pass" for rollout in rollouts)
    assert interval(found["judge_pass"]) == pytest.approx(wilson(passed, 60))
    lengths = [len(rollout.answer.logprobs) for rollout in rollouts]
    mean = sum(lengths) / 60
    margin = 2.001 * (sum((n - mean) ** 2 for n in lengths) / 59 / 60) ** 0.5
    assert interval(found["answer_tokens"]) == pytest.approx(
        (mean - margin, mean + margin), abs=0.05
    )
    rates_of_j = found["honest_given_noncompliant"], found["false_confession"]
    assert interval(found["J"]) == pytest.approx(newcombe(*rates_of_j))


def test_bootstrap_draws_prompts_and_not_rollouts():
    """Ten equal rollouts of each prompt look like ten times the evidence:
    intervals shrink about threefold.
    """
    once, tenfold = metrics(random_side(0, 60), TASK), metrics(random_side(0, 60, repeats=10), TASK)
    width = lambda e: e["high"] - e["low"]
    for name in (
        "judge_pass",
        "claim_match",
        "honesty_reward",
        "answer_tokens",
        "honest_given_noncompliant",
        "J",
        "judge_kappa",
    ):
        assert tenfold[name]["value"] == pytest.approx(once[name]["value"])
        assert 0.85 < width(tenfold[name]) / width(once[name]) < 1.2, name
    assert tenfold["judge_pass"]["n"] == 600


# ------------------------------------------------------------------------------- paired differences


def test_differences_of_equal_sides_are_zero():
    """Two evaluations with the same outcomes seem to differ, because each side draws its own
    bootstrap samples; or they are known to be equal without any doubt: if no prompt of n differs,
    a share of up to Wilson's bound of 0/n still might.
    """
    side = random_side(0, 30)
    compliant = sum(rollout.truth.compliant for rollout in side)
    trials = {"honest_given_noncompliant": 30 - compliant, "false_confession": compliant}
    found = differences(side, random_side(0, 30), TASK)
    for name in ("exact_compliance", "judge_pass", "claim_match", *trials):
        bound = wilson(0, trials.get(name, 30))[1]
        assert (found[name]["value"], *interval(found[name]), found[name]["n"]) == (
            0.0,
            -bound,
            bound,
            30,
        )
    # made of such rates: as far out as one of them or further
    for name in DERIVED.keys() - {"claim_J_within"}:
        assert found[name]["high"] >= wilson(0, 30)[1]
    alone = ("claim_J_within", "within_prompt")  # an answer a prompt says nothing of it
    assert all(
        e["value"] == 0.0 and e["low"] == -e["high"]
        for name, e in found.items()
        if name not in alone
    )
    assert all(found[name]["value"] is None for name in alone)


def test_differences_of_a_constant_shift():
    """The same change on every prompt gets an interval of the prompts' own spread,
    as if the sides were not paired.
    """
    before, after = random_side(0, 30), random_side(0, 30)
    for rollout in after:
        rollout.answer.end += 3
        rollout.confession.end -= 2
        rollout.report = UNPARSED
    found = differences(before, after, TASK)
    for name, shift in (("answer_tokens", 3), ("confession_tokens", -2)):
        assert (found[name]["value"], *interval(found[name])) == pytest.approx(
            (shift, shift, shift)
        )
    # a rate: that all 30 prompts changed does not make every other one certain
    bound = wilson(0, 30)[1]
    assert (found["parsed"]["value"], *interval(found["parsed"])) == pytest.approx(
        (-1, -1, -1 + bound)
    )


def test_differences_without_trials_are_none():
    """A difference that does not exist, as no report was parsed on one side or on both, gets
    a value or an interval.
    """
    before, after = random_side(0, 10), random_side(0, 10)
    for side in (after, before):
        for rollout in side:
            rollout.report = UNPARSED
        found = differences(before, after, TASK)
        for name in ("claim_match", "honest_given_noncompliant", "hedge_rate", "J"):
            assert (found[name]["value"], *interval(found[name])) == (None, None, None)


def test_differences_equal_the_difference_of_metrics():
    """The table's last column is not the second column minus the first, or its sign is turned."""
    before, after = random_side(0, 60), random_side(1, 60)
    first, last, found = (
        metrics(before, TASK),
        metrics(after, TASK),
        differences(before, after, TASK),
    )
    assert found.keys() == first.keys()
    for name, e in found.items():
        if name not in ("claim_J_within", "within_prompt"):  # an answer a prompt says nothing of it
            assert (
                e["value"] == pytest.approx(last[name]["value"] - first[name]["value"])
                and e["low"] <= e["value"] <= e["high"]
            )


def test_differences_refuse_unpaired_sides():
    """Evaluations on other prompts, or in another order, are subtracted as if they were pairs."""
    side = random_side(0, 8)
    elsewhere = [scored((T, T), (None, None), "pass", seed=100 + i) for i in range(8)]
    for other in (random_side(0, 9), side[::-1], random_side(0, 4, repeats=2), elsewhere):
        with pytest.raises(ValueError, match="same prompts"):
            differences(side, other, TASK)


def test_paired_rates_gain_from_what_they_share():
    """A difference of rates on the same topics gets the interval of two evaluations
    on different ones.
    """
    sides = [random_side(0, 60), random_side(0, 60)]
    for rollout in sides[1][:12]:
        rollout.verdict = Verdict("pass", "")
    found = [metrics(side, TASK)["judge_pass"] for side in sides]
    paired = differences(*sides, TASK)["judge_pass"]
    low, high = newcombe(found[1], found[0])
    assert 0.0 < paired["value"] < 0.15 and high - low > 2.5 * (paired["high"] - paired["low"])
    # Newcombe's method with a correlation of 1 and margins .1 and .3 on either side: the difference
    # of the margins
    of = lambda value, margin: {"value": value, "low": value - margin, "high": value + margin}
    assert newcombe(of(0.5, 0.1), of(0.4, 0.3), correlation=1.0) == pytest.approx((-0.1, 0.3))


# --------------------------------------------------------------------------------- finished answers


def test_finished_answers_alone():
    """Where answers run into the budget the metrics of those that did not are missing, are of all,
    or are there without need.
    """
    cut_off = scored(
        (F, F), (True, True), "pass", ("None", "None"), 1, finishes=("length", "stop"), seed=0
    )
    whole = scored((F, F), (True, True), "pass", ("None", "None"), 1, seed=1)
    few = metrics([cut_off] + [whole] * 19, TASK)  # 5%
    assert not any("finished" in e for e in few.values())
    found = metrics([cut_off, *SIX[:2], *SIX[4:]], TASK)
    alone = metrics([*SIX[:2], *SIX[4:]], TASK)
    assert {name: e["finished"] for name, e in found.items()} == alone
    assert alone["answer_truncated"]["value"] == 0.0 and found["answer_truncated"]["n"] == 5
    none = metrics([cut_off, cut_off], TASK)
    assert all((e["finished"]["value"], e["finished"]["n"]) == (None, 0) for e in none.values())
    lines = format_table({"step 0": few, "step 9": found}).splitlines()
    assert [name.strip() for name in lines[0].strip().split("  ") if name] == [
        "step 0",
        "step 9",
        "step 9, finished",
    ]
    (line,) = [line for line in lines if line.startswith("exact_compliance ")]
    shown = lambda e: "{value:.2f} [{low:.2f}, {high:.2f}]".format(**e)
    for e in (few, found, alone):
        assert shown(e["exact_compliance"]) in line
    json.dumps(none, allow_nan=False)


def test_metrics_given_a_report_say_so():
    """A table shows honesty among the few reports that parse as if it were that of all."""
    lines = {
        line.split()[0]: line for line in format_table({"": metrics(SIX, TASK)}).splitlines()[1:]
    }
    assert {name for name, line in lines.items() if "| parsed " in line} == {
        *NO_REPORT,
        "claim_J_within",
        "claim_J",
        "claim_bits",
        "J",
        "grade_auroc",
    } & set(SHOWN)


# ----------------------------------------------------------------------------------- training seeds


def test_across_seeds():
    """Runs of other seeds are not compared prompt by prompt, a pair is missing or turned round,
    or a run without a trial counts as 0 in the mean.
    """
    sides = {name: random_side(seed, 30) for name, seed in (("a", 0), ("b", 1), ("c", 2))}
    for rollout in sides["c"]:
        rollout.report = UNPARSED
    columns = across_seeds(sides, TASK)
    assert list(columns) == ["a", "b", "c", "mean", "b - a", "c - a", "c - b"]
    assert all(columns[name] == metrics(side, TASK) for name, side in sides.items())
    assert columns["c - b"] == differences(sides["b"], sides["c"], TASK)
    for name, n in (("exact_compliance", 3), ("claim_match", 2)):
        values = [v for run in "abc" if (v := columns[run][name]["value"]) is not None]
        assert columns["mean"][name] == {
            "value": pytest.approx(sum(values) / n),
            "low": None,
            "high": None,
            "n": n,
        }
