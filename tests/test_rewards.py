"""What answers and confessions earn.
A mistake here trains something else than the experiment is about.
"""

import itertools
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

import run_folder
from cli import UserError
from confession_schema import ConfessionReport, ParseFailure
from grpo import group_advantages
from handmade import hand_rollout
from rewards import (
    UNPARSED_INFORMATION,
    UNPARSED_REWARD,
    Verdict,
    honesty_reward,
    information_reward,
    judge_margin,
    judge_reward,
    score_rollouts,
    truth_reward,
    verdict_of,
)
from tasks import word_count

T, F = True, False


def test_rewards_of_verdicts():
    """A failed verdict is a 0, pass and fail are swapped,
    or the margin is not the reward that was asked for.
    """
    rollouts = [
        SimpleNamespace(verdict=v)
        for v in (verdict_of(0.25), verdict_of(-3.5), Verdict("failed", "[too long]"))
    ]
    assert judge_reward(rollouts) == [1.0, 0.0, None]
    assert judge_margin(rollouts) == [0.25, -3.5, None]


def test_the_truth_as_reward():
    """The reward of the truth is that of labels or of the judge, or counts all or nothing."""
    x = word_count.prompt_text("bees", "beginners", "facts", (3, 3, 2))
    answers = {
        "Bees hum low. (3) They fly. (3) They. (2)": 1 / 3,
        "Bees hum low. Bees hum low. Bees hum.": 1.0,
        "": 0.0,
    }
    rollouts = [SimpleNamespace(truth=word_count.truth(x, y)) for y in answers]
    assert truth_reward(rollouts) == pytest.approx(list(answers.values()))


def test_saved_verdicts_come_back(tmp_path):
    """A margin is lost on the way to the file,
    or a run from before there were margins cannot be read.
    """
    rollouts = [hand_rollout(([1], [5], [3], [6])) for _ in range(3)]
    for rollout, verdict in zip(
        rollouts, (verdict_of(0.1), Verdict("failed", "[too long]"), Verdict("pass", "**PASS**"))
    ):
        rollout.verdict = verdict
    run_folder.save_rollouts(tmp_path / "some.jsonl", rollouts)
    assert [r.verdict for r in run_folder.load_rollouts(tmp_path / "some.jsonl", word_count)] == [
        r.verdict for r in rollouts
    ]
    data = rollouts[2].to_json()
    del data["verdict"]["margin"]
    run_folder.write_text(tmp_path / "old.jsonl", json.dumps(data) + "\n")
    assert run_folder.load_rollouts(tmp_path / "old.jsonl", word_count)[0].verdict == Verdict(
        "pass", "**PASS**", None
    )


def test_a_task_without_objectives_is_refused():
    """Every confession to such a prompt divides by zero, or is honest whatever it says."""
    task = SimpleNamespace(
        __name__="haiku", truth=lambda x, y: SimpleNamespace(objectives=()), objectives=lambda x: {}
    )
    with pytest.raises(
        UserError, match="task haiku names 0 objectives for the prompt 'Bees' and its truth has 0"
    ):
        score_rollouts(
            [hand_rollout(([1], [5], [3], [6]), x="Bees")], [Verdict("pass", "PASS", 1.0)], task
        )


def test_an_empty_answer_is_confessed_like_any_other():
    """It meets an objective, complies, or its confession has no reward."""
    rollout = hand_rollout(([1], [5], [3], [6]), x=word_count.make_prompt(0), y="", yc="no report")
    score_rollouts([rollout], [Verdict("fail", "FAIL", -1.0)], word_count)
    assert rollout.truth.objectives == (False,) * 5 and not rollout.truth.compliant
    assert rollout.confession.reward == UNPARSED_REWARD
    rollout.report = ConfessionReport(("None",) * 5, (), 1)
    assert honesty_reward([rollout]) == [1.0]
    rollout.report = ConfessionReport(("Full",) * 5, (), 7)
    assert honesty_reward([rollout]) == [0.0]


# (seed of the group, finish, the reward function's value) of each answer, and what
# the spans must hold
TRUNCATED = {
    "0, whatever the judge says": (
        [(0, "length", 1.0), (0, "length", None), (0, "stop", 1.0)],
        [0.0, 0.0, 1.0],
    ),
    "not above a finished one": (
        [(0, "length", 0.4), (0, "stop", -0.5), (0, "stop", 0.3)],
        [-0.5, -0.5, 0.3],
    ),
    "another group": ([(0, "length", -2.0), (1, "stop", -0.5), (0, "stop", 0.3)], [0.0, -0.5, 0.3]),
    "nobody finished": ([(0, "length", -2.0), (0, "length", 0.7)], [0.0, 0.0]),
    "the finished ones unjudged": ([(0, "length", 0.7), (0, "stop", None)], [0.0, None]),
}


@pytest.mark.parametrize("case", TRUNCATED)
def test_truncated_answers(case):
    """Endless answers earn what the judge thinks of them, drop out instead of losing,
    or do better than finished ones.
    """
    given, expected = TRUNCATED[case]
    blocks = ([1], [5], [2, 3], [6])
    rollouts = [
        hand_rollout(blocks, finishes=(finish, "length"), seed=seed) for seed, finish, _ in given
    ]
    values = {id(rollout): value for rollout, (_, _, value) in zip(rollouts, given)}
    rewards = lambda rs: [values[id(r)] for r in rs], lambda rs: [0.25] * len(rs)
    score = lambda **option: score_rollouts(
        rollouts, [Verdict("pass", "PASS", 1.0)] * len(given), word_count, *rewards, **option
    )
    score()
    assert [rollout.answer.reward for rollout in rollouts] == expected
    assert all(rollout.confession.reward == 0.25 for rollout in rollouts)
    score(truncated_reward="judge")
    assert [rollout.answer.reward for rollout in rollouts] == [value for _, _, value in given]


def test_score_rollouts():
    """A score lands in the wrong field or on the wrong rollout,
    or one is left out without a word.
    """
    task = SimpleNamespace(
        truth=lambda x, y: SimpleNamespace(objectives=(True,), of=(x, y)),
        objectives=lambda x: {"A": "a"},
    )
    rollouts = [
        hand_rollout(([1], [5], [3], [6]), x=f"x{i}", y=f"y{i}", yc="no report") for i in range(2)
    ]
    verdicts = [Verdict("pass", "PASS"), Verdict("failed", "?")]
    score_rollouts(rollouts, verdicts, task, judge_reward, lambda rollouts: [5.0] * len(rollouts))
    assert [rollout.truth.of for rollout in rollouts] == [("x0", "y0"), ("x1", "y1")]
    assert [rollout.verdict for rollout in rollouts] == verdicts
    assert [rollout.answer.reward for rollout in rollouts] == [1.0, None]
    assert all(
        rollout.confession.reward == 5.0 and isinstance(rollout.report, ParseFailure)
        for rollout in rollouts
    )
    assert all(
        span.advantage == 0.0
        for rollout in rollouts
        for span in (rollout.answer, rollout.confession)
    )
    with pytest.raises(ValueError):
        score_rollouts(rollouts, verdicts[:1], task)


# --------------------------------------------------------------------------- rewards of confessions


def confessed(
    seed: int, met: tuple[bool, ...], claims: tuple[str, ...] | None, grade: int = 1
) -> SimpleNamespace:
    report = ConfessionReport(claims, (), grade) if claims else ParseFailure("no JSON object")
    return SimpleNamespace(
        seed=seed, truth=SimpleNamespace(objectives=met, compliant=all(met)), report=report
    )


@pytest.mark.parametrize(
    "met, claims, grade, reward",
    [
        ((T, T), ("Full", "Full"), 7, 1.0),
        ((T, T), ("Full", "Full"), 4, 1.0),  # 4 claims passing
        ((T, T), ("Full", "Full"), 3, 0.5),
        ((T, T), ("None", "None"), 1, 0.0),
        ((T, T), ("None", "None"), 7, 0.5),
        ((T, T), ("Partial", "None"), 7, 0.625),
        ((F, F), ("None", "None"), 1, 1.0),
        ((F, F), ("None", "None"), 3, 1.0),
        ((F, F), ("Full", "Full"), 7, 0.0),
        ((F, F), ("Partial", "Partial"), 2, 0.75),
        ((F, F), ("Partial", "Partial"), 4, 0.25),
        ((T, F), ("Full", "None"), 3, 1.0),
        ((T, F), ("None", "Full"), 3, 0.5),
        ((T, F), ("Partial", "Full"), 5, 0.125),
        ((T, T), None, 0, -0.2),  # unparsed
    ],
)
def test_honesty_reward(met, claims, grade, reward):
    """Confessions are paid for something else than claims that match the truth and a grade on
    the right side of 4.
    """
    assert honesty_reward([confessed(0, met, claims, grade)]) == [pytest.approx(reward)]


PROMPTS = {
    0: [(T, F, F), (T, T, T), (F, F, T), (F, F, F)],
    1: [(F, F, F)] * 4,
    2: [(T, T, T), (T, T, F)],
}  # truths of their answers


def test_information_reward_by_hand():
    """The information reward is not half the mean of (s - 1/2) (t - mean) over objectives and half
    that of the grade.
    """
    rollouts = [
        confessed(0, (T, F), ("Full", "Partial"), 5),
        confessed(0, (F, F), ("None", "None"), 3),
        confessed(0, (T, T), ("None", "Full"), 4),
        confessed(1, (T, T), ("Full", "Full"), 7),
        confessed(0, (F, T), None),
    ]
    # means of prompt 0 over four answers: 1/2, 1/2 and 1/4; of prompt 1, which has one: 1
    expected = [
        0.5 * (0.25 + 0) / 2 - 0.5 * 0.125,
        0.5 * (0.25 + 0.25) / 2 + 0.5 * 0.125,
        0.5 * (-0.25 + 0.25) / 2 + 0.5 * 0.375,
        0.0,
    ]
    assert information_reward(rollouts) == pytest.approx([*expected, UNPARSED_INFORMATION])


def test_unparsed_reports_earn_less_than_the_worst_report():
    """Some report that parses earns no more than none at all: the form is not learned."""
    n = 64  # one answer of n is met, and its report says the opposite
    wrong = [
        confessed(0, (i == 0,), ("None",) if i == 0 else ("Full",), 1 if i == 0 else 7)
        for i in range(n)
    ]
    assert -0.5 < min(information_reward(wrong)) < -0.49 and UNPARSED_INFORMATION < -0.5


def test_reports_that_know_only_the_prompt_earn_nothing():
    """A constant report or one that is guessed from the prompt earns something on average:
    the base rate pays again.
    """
    reports = [
        (claims, grade)
        for claims in itertools.product(("Full", "Partial", "None"), repeat=3)
        for grade in (1, 7)
    ]
    for rng_seed in range(50):
        rng = random.Random(rng_seed)
        said = {seed: rng.choice(reports) for seed in PROMPTS}
        rollouts = [
            confessed(seed, met, *said[seed])
            for seed, answers in PROMPTS.items()
            for met in answers
        ]
        rewards = information_reward(rollouts)
        for seed in PROMPTS:
            assert (
                abs(sum(r for r, rollout in zip(rewards, rollouts) if rollout.seed == seed)) < 1e-15
            )
        assert any(rewards)


def test_information_reward_is_proportional_to_j():
    """Rewards of reports that are right in some cases and wrong in others do not add up
    to TPR + TNR - 1.
    """
    claims = {T: "Full", F: "None"}
    for met, unmet in ((2, 2), (1, 3), (6, 2)):
        p = met / (met + unmet)
        # right claims about met and unmet answers
        for tp, tn in itertools.product(range(met + 1), range(unmet + 1)):
            truths = (T,) * met + (F,) * unmet
            said = (*(i < tp for i in range(met)), *(i >= tn for i in range(unmet)))
            rollouts = [
                confessed(0, (t,), (claims[s],), 7 if s else 1) for t, s in zip(truths, said)
            ]
            mean = sum(information_reward(rollouts)) / len(rollouts)
            assert mean == pytest.approx((tp / met + tn / unmet - 1) * p * (1 - p))


def simulate(
    base_rate: float,
    scale: str,
    confessions: int,
    clue: float | None = None,
    seed: int = 0,
    steps: int = 300,
) -> np.ndarray:
    """(share of Full if there is no clue or it says unmet, share if it says met) after GRPO with
    the information reward.

    8 prompts a step with 16 confessions each: 4 to each of 4 answers, or 1 to each of 16; one
    objective and its grade, half of the prompts are easier. The policy sees no answer; `clue`:
    how often one that it does see is right, None for none. Plain gradient ascent on two logits,
    faster without scaling, as advantages are then about a fourth.
    """
    rng, logits, rate = np.random.default_rng(seed), np.zeros(2), 2.0 if scale == "none" else 0.5
    made = {
        (prompt, t, full): confessed(
            prompt, (t,), ("Full",) if full else ("None",), 7 if full else 1
        )
        for prompt, t, full in itertools.product(range(8), (T, F), (T, F))
    }
    easier = base_rate * np.where(np.arange(8) % 2, 1.5, 0.5)
    for _ in range(steps):
        met = rng.random((8, 16 // confessions)) < easier[:, None]
        hint = (rng.random(met.shape) < clue) == met if clue else np.zeros_like(met)
        met, hint = (np.repeat(a.ravel(), confessions) for a in (met, hint.astype(int)))
        share = 1 / (1 + np.exp(-logits[hint]))
        full = rng.random(len(met)) < share
        rollouts = [made[i // 16, bool(t), bool(f)] for i, (t, f) in enumerate(zip(met, full))]
        size = confessions if confessions > 1 else 16
        advantages, _ = group_advantages(information_reward(rollouts), size, scale)
        gradient = np.array(advantages) * (full - share)  # of the log-probability of what was said
        logits += rate * np.bincount(hint, gradient, minlength=2) / len(met)
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("base_rate", [0.05, 0.1, 0.28, 0.5])
def test_a_blind_policy_stays_without_scaling(base_rate):
    """A report that cannot see its answer drifts to a constant although that earns nothing, with
    one confession an answer or four.
    """
    for confessions in (1, 4):
        assert (
            0.4
            < np.mean([simulate(base_rate, "none", confessions, seed=seed)[0] for seed in range(2)])
            < 0.6
        )


@pytest.mark.parametrize("base_rate", [0.05, 0.28])
def test_a_policy_with_a_clue_learns_to_use_it(base_rate):
    """The reward does not pay for information."""
    for scale, confessions in (("none", 1), ("none", 4), ("batch", 4)):
        unmet, met = simulate(base_rate, scale, confessions, clue=0.7)
        assert unmet < 0.25 and met > 0.75


@pytest.mark.parametrize("base_rate", [0.05, 0.1, 0.28])
def test_the_groups_deviation_makes_a_constant_of_a_blind_policy(base_rate):
    """It does not among an answer's confessions, and "none" as the default needs no reason."""
    assert simulate(base_rate, "group", confessions=4)[0] < 0.1


@pytest.mark.parametrize("scale", ["none", "group"])
def test_expected_push_of_a_blind_policy_among_a_prompts_answers(scale):
    """Without scaling a blind policy is pushed, or the group's deviation does not push it away from
    the base rate. Exact: all 256 things that it may say of 8 answers, k of which met the objective.
    """
    for k in range(9):
        push = 0.0
        for said in itertools.product((0, 1), repeat=8):
            rollouts = [
                confessed(0, (i < k,), ("Full",) if s else ("None",), 7 if s else 1)
                for i, s in enumerate(said)
            ]
            advantages, _ = group_advantages(information_reward(rollouts), 8, scale)
            push += sum(a * (s - 0.5) for a, s in zip(advantages, said)) / 256
        expected = 0 if scale == "none" or k in (0, 4, 8) else 1 if k < 4 else -1
        assert np.sign(round(push, 9)) == expected, k


def test_a_reward_function_of_one_rollout_is_refused():
    """Rewards of another number than there are rollouts are dealt out somehow, or end
    in a traceback.
    """
    rollouts = [hand_rollout(([1], [5], [3], [6]), x=word_count.make_prompt(0)) for _ in range(3)]
    for function in (lambda rollout: 0.5, lambda rollouts: [0.5]):
        with pytest.raises(UserError, match="not a list with a reward for each of the 3 rollouts"):
            score_rollouts(rollouts, [Verdict("pass", "PASS", 1.0)] * 3, word_count, function)


def test_answer_rewards_see_an_answer_once():
    """An answer with several confessions counts several times in a reward that compares answers,
    or its copies differ.
    """
    rollouts = [
        hand_rollout(([1], [5], [3], [6]), x=word_count.make_prompt(0), branch=i % 3)
        for i in range(6)
    ]
    seen = []
    score_rollouts(
        rollouts,
        [Verdict("pass", "PASS", 1.0)] * 6,
        word_count,
        lambda rs: seen.append(len(rs)) or [0.25, 0.75],
    )
    assert seen == [2] and [r.answer.reward for r in rollouts] == [0.25] * 3 + [0.75] * 3
