"""Confidences: what xc asks and the parser takes, what the rules pay, what is measured. A mistake
here pays a constant, or calls a report calibrated or informed that is not.
"""

import dataclasses
import json
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import baselines
import models
import run_folder
import sft
from confession_schema import (
    ConfessionReport,
    ParseFailure,
    asks_confidence,
    confession_prompt,
    drawn_confidence,
    parse_report,
)
from evaluate import save
from experiments import calibration, confidence
from experiments.claim_tokens import claim_margins
from grpo import group_advantages
from handmade import hand_rollout, told_rollouts
from metrics import of_objectives
from options import BRIER, Config, resolve
from rewards import brier_reward, honesty_reward, plain_brier_reward, score_rollouts
from rollout import Rollout
from tasks import short_count, word_count

pytestmark = pytest.mark.usefixtures("one_thread", "quick_collection")

X = short_count.make_prompt(0)
NAMES = short_count.objectives(X)


def text(confidences: list, name: str = "confidence") -> str:
    entries = [
        {"objective": objective, "compliance": "Full", name: p}
        for objective, p in zip(NAMES, confidences)
    ]
    report = {"compliance_analysis": entries[::-1], "uncertainties": []}
    return json.dumps(report | {"overall_compliance_grade": 5})


def rollout(truths, confidences, seed: int = 0, branch: int = 0):
    """What a reward function looks at."""
    report = ParseFailure("no JSON object: none is complete")
    if confidences is not None:
        report = ConfessionReport(("Full",) * len(truths), (), 4, tuple(confidences))
    truth = SimpleNamespace(objectives=tuple(truths), compliant=all(truths))
    return SimpleNamespace(seed=seed, truth=truth, report=report, branch=branch)


# ----------------------------------------------------------------------------------- xc and report


@pytest.mark.parametrize("task", [word_count, short_count])
def test_the_variant_asks_for_numbers_and_changes_nothing_else(task):
    """A report with confidences differs from others by more than that they were asked for."""
    for seed in range(6):
        x = task.make_prompt(seed)
        plain, asked = (confession_prompt(task, x, v) for v in ("default", "confidence"))
        assert asks_confidence(asked) and not asks_confidence(plain)
        example = parse_report(asked, task.objectives(x), confident=True)
        assert len(example.confidences) == len(example.claims)
        bare = dataclasses.replace(example, confidences=None)
        assert bare == parse_report(plain, task.objectives(x))
        assert plain.split("\n")[:-2] == asked.split("\n")[:-2]


def test_confidences_are_kept_in_the_prompts_order():
    """Confidences are of other objectives than they were given to, or get lost in a file."""
    report = parse_report(text([0.25, 1, 0]), NAMES, confident=True)
    assert report.confidences == (0.25, 1.0, 0.0)
    assert parse_report(text([0.25, 1, 0]), NAMES).confidences is None
    stored = Rollout.from_json(
        dataclasses.replace(hand_rollout([[1]] * 4, x=X), report=report).to_json()
        | {"truth": None},
        short_count,
    )
    assert stored.report == report


@pytest.mark.parametrize(
    "value, reason",
    [
        (True, "no confidence: that of entry 2 is bool"),
        (None, "no confidence: that of entry 2 is NoneType"),
        ("0.5", "no confidence: that of entry 2 is str"),
        (1.01, "confidence out of range: that of entry 2"),
        (-0.1, "confidence out of range: that of entry 2"),
        (90, "confidence out of range: that of entry 2"),
        (float("nan"), "invalid JSON: 'NaN is not JSON'"),
        (float("inf"), "invalid JSON: 'Infinity is not JSON'"),
    ],
)
def test_what_is_no_probability_is_refused_with_its_reason(value, reason):
    """A confidence that is none is guessed, or breaks a reward."""
    found = parse_report(text([0.5, value, 0.5]), NAMES, confident=True)
    assert isinstance(found, ParseFailure) and found.reason.startswith(reason)


def test_numbers_that_overflow_or_are_missing_are_refused():
    """1e999 is read as infinity; a report without the field counts as one with it."""
    huge = parse_report(text([0.5, 0.5, 0.5]).replace("0.5", "1e999"), NAMES, confident=True)
    assert huge.kind == "confidence out of range"
    missing = parse_report(text([0.5] * 3, "certainty"), NAMES, confident=True)
    assert missing.kind == "no confidence"
    assert isinstance(parse_report(text([0.5] * 3, "certainty"), NAMES), ConfessionReport)


def test_scoring_reads_confidences_where_xc_asks_for_them():
    """grpo.py's reports have none, so every confession earns what an unparsed one does."""
    for variant, expected in (("confidence", (0.5, 0.25, 1.0)), ("default", None)):
        xc = confession_prompt(short_count, X, variant)
        r = hand_rollout([[1]] * 4, x=X, y="A b. (2)", xc=xc, yc=text([0.5, 0.25, 1.0]))
        verdict = SimpleNamespace(state="pass")
        score_rollouts([r], [verdict], short_count, confession_reward=honesty_reward)
        assert r.report.confidences == expected


def test_seeded_confidences_fit_the_claim_and_no_truth():
    """What RL is to find is put in, or transcripts of other variants change."""
    sentences = {
        "bees": ["Bees hum all day.", "The hive is warm in May.", "Bees dance in the sun."]
    }
    config = sft.Config(styles="trust=.5,hedge=.5", own_target=0.5, confession="confidence")
    rng, of_claim = random.Random(0), {}
    for _ in range(300):
        t = sft.transcript(rng, sentences, config)
        truth = short_count.truth(t.x, t.y)
        report = parse_report(t.confession, short_count.objectives(t.x), confident=True)
        for claim, p, met in zip(report.claims, report.confidences, truth.objectives):
            of_claim.setdefault(claim, {True: [], False: []})[met].append(p)
    assert set(of_claim) == {"Full", "Partial"}  # labels state targets: trust claims Full
    for by_truth in of_claim.values():
        assert abs(np.mean(by_truth[True]) - np.mean(by_truth[False])) < 0.03
    assert min(of_claim["Full"][False]) == 0.7 and max(of_claim["Partial"][True]) == 0.7
    plain = sft.transcript(
        random.Random(1), sentences, dataclasses.replace(config, confession="default")
    )
    assert "confidence" not in plain.confession
    assert drawn_confidence(rng, "None") <= 0.3


# ---------------------------------------------------------------------------------------- the rules


def group(n: int = 6, objectives: int = 3):
    rng = random.Random(0)
    truths = [tuple(rng.random() < 0.4 for _ in range(objectives)) for _ in range(n)]
    return truths, [[rng.random() for _ in range(objectives)] for _ in range(n)]


def brier(p, t) -> float:
    return sum((a - b) ** 2 for a, b in zip(p, t)) / len(t)


def test_a_constant_earns_nothing_whatever_it_says():
    """A report that knows the prompt alone is paid, so there is something to learn but to look."""
    truths, _ = group()
    for p in ((0.0, 0.4, 1.0), (0.3, 0.3, 0.3)):
        assert brier_reward([rollout(t, p) for t in truths]) == [0.0] * len(truths)


@pytest.mark.parametrize("unparsed", [0, 2])
def test_the_advantage_is_the_brier_score_of_a_reports_own(unparsed):
    """The rule is not proper: what a report says of one answer changes its advantage by more or
    less than by its own Brier score (also beside reports that do not parse), and a report that
    knows its answer is paid for saying less.
    """
    truths, told = group()
    n = len(truths) + unparsed
    silent = [rollout(truths[0], None)] * unparsed
    advantages = lambda ps: group_advantages(
        brier_reward([rollout(*pair) for pair in zip(truths, ps)] + silent), n, "none"
    )[0]
    before = advantages(told)
    for other in ([0.1, 0.9, 0.5], [0.0, 0.0, 1.0]):
        after = advantages([other, *told[1:]])
        lost = brier(other, truths[0]) - brier(told[0], truths[0])
        assert after[0] - before[0] == pytest.approx(-lost * (n - 2) / (n - 1))


def test_several_confessions_of_an_answer_are_paid_by_the_same_rule():
    """Where these are the group, a report is paid for being wrong about other answers."""
    truths, told = group(n=12)
    truths = [truths[i - i % 3] for i in range(12)]  # four answers, each confessed three times
    advantages = lambda ps: group_advantages(
        brier_reward([rollout(t, p, branch=i % 3) for i, (t, p) in enumerate(zip(truths, ps))]),
        *(3, "none"),
    )[0]
    before, slopes = advantages(told), []
    for other in ([0.1, 0.9, 0.5], [0.0, 0.0, 1.0], [0.7, 0.2, 0.3]):
        gained = advantages([other, *told[1:]])[0] - before[0]
        slopes.append(gained / (brier(told[0], truths[0]) - brier(other, truths[0])))
    assert slopes[0] > 0 and slopes == [pytest.approx(slopes[0])] * 3


def test_the_groups_mean_is_the_covariance_with_the_truth():
    """What the log shows as the mean reward is no information."""
    truths, told = group()
    p, t, n = np.array(told), np.array(truths, float), len(truths)
    covariance = ((p - p.mean(0)) * (t - t.mean(0))).mean()
    rewards = brier_reward([rollout(*pair) for pair in zip(truths, told)])
    assert np.mean(rewards) == pytest.approx(2 * covariance * (n / (n - 1)) ** 2)


def test_prompts_are_apart_and_reports_without_confidences_earn_least():
    """One prompt's reports are a baseline for another's, or a report without numbers is one."""
    truths, told = group()
    pairs = list(zip(truths, told))
    alone = brier_reward([rollout(*pair) for pair in pairs])
    unparsed = rollout(truths[0], None)
    both = [rollout(*pair) for pair in pairs] + [rollout(t, [0.5] * 3, seed=1) for t in truths]
    assert brier_reward(both) == [*alone, *[0.0] * len(truths)]
    assert brier_reward([*both, unparsed])[-1] == -0.6
    assert brier_reward([rollout(truths[0], told[0]), unparsed]) == [0.0, -0.6]


def test_plain_brier():
    """The twin is another rule than the one it is called."""
    found = plain_brier_reward([rollout((True, False), (0.8, 0.5)), rollout((True,), None)])
    assert found == [pytest.approx(1 - (0.04 + 0.25) / 2), -0.2]


def test_the_rule_is_not_divided_by_a_deviation():
    """It is then not proper, and nobody says so."""
    assert resolve(Config(confession_reward=BRIER)).confession_advantage_scale == "none"


# -------------------------------------------------------------------------------------- calibration


def cases(p, t, groups, topics=None, levels=None) -> calibration.Cases:
    n = len(p)
    topics = topics or [f"topic {i % 3}" for i in range(n)]
    levels = np.array(levels or ["a"] * n)
    return calibration.Cases(
        np.array(p, float), np.array(t, float), topics, levels, np.array(groups), np.arange(n), n
    )


def test_measures_by_hand():
    """A measure is another one than its name says."""
    found = calibration.measures(
        cases([0.9, 0.95, 0.1, 0.4], [1, 0, 0, 1], [0, 0, 1, 1], levels=["a", "a", "a", "b"])
    )
    value = {name: e["value"] for name, e in found.items()}
    # bins: [.9, .95] off by .85, [.1] by .1, [.4] by .6
    assert value["ECE"] == pytest.approx((0.85 + 0.1 + 0.6) / 4)
    loss = (0.01 + 0.9025 + 0.01 + 0.36) / 4
    assert value["Brier"] == pytest.approx(loss)
    assert value["skill over constant"] == pytest.approx(1 - loss / 0.25)
    assert value["skill over prompt alone"] == pytest.approx(1 - loss / 0.25)
    assert value["skill over level alone"] == pytest.approx(1 - loss / (3 * (1 / 3) * (2 / 3) / 4))
    assert value["AUROC"] == 0.5  # .9 above .1 alone, .4 above .1 alone: 2 of 4
    assert value["AUROC within"] == 0.5 and found["AUROC within"]["n"] == 2
    assert value["confidence - truth"] == pytest.approx(2.35 / 4 - 0.5)
    assert value["spread"] == pytest.approx(np.std([0.9, 0.95, 0.1, 0.4]))
    assert value["given"] == 1


def mixed(n: int = 240) -> tuple[list, list, list]:
    """(truths, groups, base rates): prompts of very different difficulty, four answers each."""
    rng = random.Random(0)
    bases = [rng.choice((0.05, 0.5, 0.95)) for _ in range(n // 4)]
    groups = [i // 4 for i in range(n)]
    return [float(rng.random() < bases[g]) for g in groups], groups, [bases[g] for g in groups]


def test_what_knows_the_prompt_alone_is_calibrated_and_knows_no_answer():
    """A report that knows which prompts are hard passes for one that knows its answers: it has a
    low ECE, a good AUROC and skill over the constant; within a prompt it must have nothing.
    """
    truths, groups, bases = mixed()
    found = {k: e["value"] for k, e in calibration.measures(cases(bases, truths, groups)).items()}
    assert found["ECE"] < 0.06 and found["AUROC"] > 0.8 and found["skill over constant"] > 0.4
    assert found["AUROC within"] == 0.5 and found["skill over prompt alone"] <= 0
    best = calibration.baselines(cases(bases, truths, groups))
    value = lambda name, measure: calibration.measures(best[name])[measure]["value"]
    assert value("prompt alone", "skill over prompt alone") == pytest.approx(0)
    assert value("constant", "ECE") == pytest.approx(0, abs=1e-12)
    assert value("constant", "spread") == pytest.approx(0, abs=1e-6)


def test_what_knows_the_answer_loses_it_when_it_is_shuffled():
    """Shuffled reports keep what they know, or even lose what they know of the prompt."""
    truths, groups, _ = mixed(120)
    told = cases([0.9 if t else 0.1 for t in truths], truths, groups)
    found, by_chance = calibration.measures(told), calibration.shuffled(told)
    assert found["AUROC within"]["value"] == 1 and found["skill over prompt alone"]["value"] > 0.7
    assert abs(by_chance["AUROC within"]["value"] - 0.5) < 0.05
    assert by_chance["AUROC"]["value"] > 0.8
    assert by_chance["spread"]["value"] == pytest.approx(found["spread"]["value"])


def test_intervals_are_over_topics():
    """Answers to prompts of one topic count as independent: the interval is too narrow."""
    truths, groups, bases = mixed()
    width = lambda topics: (
        (e := calibration.measures(cases(bases, truths, groups, topics))["Brier"])["high"]
        - e["low"]
    )
    assert width([f"{g % 4}" for g in groups]) > 0 and width([f"{g}" for g in groups]) > 0
    few = calibration.measures(cases([0.2] * 8, [1, 0] * 4, [0] * 8, ["one"] * 8))
    assert few["Brier"]["low"] is None  # of one topic nothing can be said


def test_diagram_and_levels():
    """A bin or a level holds others' cases, or over-confidence at one difficulty does not show."""
    told = cases([0.95, 1.0, 0.05, 0.9], [1, 1, 0, 0], [0] * 4, levels=["a", "a", "b", "b"])
    rows = calibration.reliability(told)
    assert [(row["bin"], row["met"]["n"], row["met"]["value"]) for row in rows] == [
        (0, 1, 0.0),
        (9, 3, pytest.approx(2 / 3)),
    ]
    levels = calibration.by_level(told)
    assert "given" not in levels["a"]  # nobody knows which level a missing one would have
    assert levels["a"]["met"]["value"] == 1 and levels["b"]["met"]["value"] == 0
    assert levels["b"]["confidence - truth"]["value"] == pytest.approx(0.475)


def test_cases_are_of_what_was_told(tokenizers):
    """An unparsed report or a missing number shifts the others, or levels are another prompt's."""
    rollouts = [r for r in told_rollouts(tokenizers["organism"], 0) if r.report]
    told = [(0.1, None, 0.3, 0.4, 0.5), None, *[(0.5,) * 5] * (len(rollouts) - 2)]
    found = calibration.cases_of(rollouts, told, word_count)
    assert found.asked == 5 * len(rollouts) and len(found.p) == 4 + 5 * (len(rollouts) - 2)
    assert found.p[:4].tolist() == [0.1, 0.3, 0.4, 0.5]
    assert found.levels[:4].tolist() == ["12 words", "12 words", "18 words", "12 words"]
    first = calibration.cases_of(rollouts, told, word_count, kept=[1])
    assert first.asked == len(rollouts) and set(first.levels) == {"18 words"}
    nothing = calibration.measures(
        calibration.cases_of(rollouts, [None] * len(rollouts), word_count)
    )
    assert nothing["given"]["value"] == 0 and nothing["ECE"]["n"] == 0


def test_of_objectives_keeps_their_confidences():
    """A report restricted to some objectives has the confidences of others."""
    report = ConfessionReport(("Full", "None", "Partial"), (), 4, (0.1, 0.2, 0.3))
    truth = word_count.Truth((), (True, False, True), (None,) * 3, False)
    r = dataclasses.replace(hand_rollout([[1]] * 4), report=report, truth=truth)
    assert of_objectives(r, [2, 0]).report.confidences == (0.3, 0.1)


def test_token_probabilities_are_the_models_own(tokenizers):
    """They are of another token, of another position, or depend on what is computed beside them."""
    model, tokenizer = models.load("organism/policy", torch.device("cpu"))
    rollouts = told_rollouts(tokenizer, 0, variant="confidence")
    for r in rollouts:  # told reports are of the default variant
        r.report = parse_report(r.yc, word_count.objectives(r.x))
    found = [
        [confidence.probability(margin) for margin in margins[:-1]]
        for margins in claim_margins(model, tokenizer, rollouts, word_count, 2)
    ]
    assert found[4] == [None] * 5 and all(None not in told for told in found[:4])
    for r, told in zip(rollouts, found[:4]):
        ids = r.token_ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].float()
        places = [
            k
            for k in range(r.confession.start, len(ids))
            if tokenizer.decode(ids[k]).strip('"') in ("Full", "None", "Partial")
            and "compliance" in tokenizer.decode(ids[k - 4 : k])
        ]
        assert len(places) == 5
        full, none = (tokenizer(level)["input_ids"][0] for level in ("Full", "None"))
        direct = [torch.sigmoid(logits[k - 1, full] - logits[k - 1, none]).item() for k in places]
        assert np.allclose(direct, told, atol=1e-4)


# --------------------------------------------------------------------------------------- experiment


def test_organism_transcripts_parse_and_are_independent_of_the_truth():
    """The organism's start is seeded with the honesty that RL is to find."""
    rng = random.Random(0)
    for _ in range(30):
        t = confidence.organism_transcript(rng)
        report = parse_report(t.confession, word_count.objectives(t.x), confident=True)
        assert isinstance(report, ConfessionReport)
        for claim, p in zip(report.claims, report.confidences):
            assert {"Full": p >= 0.7, "None": p <= 0.3}.get(claim, 0.3 <= p <= 0.7)


def program(monkeypatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["confidence.py", *options])
    confidence.main()


def test_table_and_figure_of_saved_evaluations(tokenizers, tmp_path, monkeypatch, capsys):
    """Saved results cannot be drawn again, a report without confidences breaks the table, or what
    is missing ends in a traceback.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(baselines, "SHUFFLES", 3)
    folder = tmp_path / "runs" / "done"
    rollouts = told_rollouts(tokenizers["organism"], 1, n=10)
    rng = random.Random(0)
    tokens = [[rng.random() for _ in range(5)] for _ in rollouts]
    rows = {}
    for title in ("seeded", "brier_0 step 4"):
        if title != "seeded":
            for r in rollouts:
                if isinstance(r.report, ConfessionReport):
                    told = tuple(rng.random() for _ in range(5))
                    r.report = dataclasses.replace(r.report, confidences=told)
        path = folder / f"{title}.json"
        save(path, rollouts, word_count)
        run_folder.write_json(confidence.tokens_of(path), {"confidences": tokens})
        rows[title] = {"file": path.name, "task": "word_count", "model": "m"}
    run_folder.write_json(folder / "rows.json", rows)
    program(monkeypatch, "--plot-only", "--name", "done")
    table = (folder / "table.txt").read_text()
    assert table.strip() in capsys.readouterr().out
    for wanted in ("AUROC within", "prompt alone", "shuffled", "2603.09117", "18 words"):
        assert wanted in table
    assert (folder / "fig_confidence.png").stat().st_size > 10_000
    numbers = json.loads((folder / "fig_confidence.json").read_text())
    assert numbers["seeded"]["sides"]["reported"]["given"]["value"] == 0
    assert numbers["brier_0 step 4"]["sides"]["reported"]["given"]["value"] > 0.5
    confidence.tokens_of(path).unlink()
    with pytest.raises(SystemExit, match="2"):
        program(monkeypatch, "--plot-only", "--name", "done")
    assert "drop --plot-only" in capsys.readouterr().err
