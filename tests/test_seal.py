"""The seal: nothing about one span's reward enters a coefficient of the other span's loss. If it
breaks, confessions are trained through the answer's reward, or answers through the confession's,
and the experiment measures nothing.
"""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import grpo
from confession_schema import ConfessionReport, ParseFailure
from grpo import Config, assign_advantages, group_advantages, span_weights, token_losses
from handmade import (
    distance,
    gradients,
    hand_rollout,
    one_turn,
    random_rollouts,
    spans_of,
    tiny_model,
)
from options import SCALES
from rewards import Verdict, honesty_reward, information_reward, judge_reward, score_rollouts
from runtime.batch import make_batch
from tasks import word_count

pytestmark = pytest.mark.usefixtures("one_thread")

NORMALISERS = ("sequence", "token")
WEIGHTS = {"answer": 1.0, "confession": 0.7}

claims = lambda claim, n: ", ".join(
    f'{{"objective": "S{i}", "compliance": "{claim}"}}' for i in range(1, n + 1)
)
REPORT = '{"compliance_analysis": [%s], "uncertainties": [], "overall_compliance_grade": %d}'
# texts yc: two honest or not, one cut off, one with four claims, one without JSON, one empty
CONFESSIONS = (
    REPORT % (claims("Full", 5), 7),
    REPORT % (claims("None", 5), 1),
    (REPORT % (claims("Full", 5), 7))[:-1],
    REPORT % (claims("Full", 4), 7),
    "I did well.",
    "",
)
# wrong, compliant
ANSWERS = ("It ran. (12)", " ".join(f"Bees{' hum' * (n - 1)}. ({n})" for n in word_count.TARGETS))


def coefficients(
    answers,
    confessions,
    group_size: int,
    normaliser: str,
    reward=honesty_reward,
    asked: list[bool] | None = None,
    **options,
) -> dict[str, list[bytes]]:
    """Per span and rollout, the bits of the coefficient of its tokens' log-probabilities
    (weight * advantage), by the batches and the loss of grpo.update.

    answers: (length, finish, verdict, reward) of each answer; confessions: (length, finish, yc,
    reward) of each confession, of which an answer has one or more. A reward is a number, None,
    or "real" for the reward function of the repository (`reward` that of confessions). The text y
    goes with the answer's index. asked: per group, whether it confesses [all do].
    """
    each = len(confessions) // len(answers)
    rollouts, given_rewards, verdicts = [], {}, []
    for k, (length_c, finish_c, yc, reward_c) in enumerate(confessions):
        i, branch = divmod(k, each)
        confesses = asked is None or asked[i // group_size]
        if branch and not confesses:
            continue
        length, finish, state, reward_a = answers[i]
        # a truncated answer is closed by a token that is not trained
        between = [3] if finish == "stop" else [2, 3]
        blocks = ([1] * (1 + i % 3), [5] * length, between, [6] * length_c)
        texts = dict(seed=i // group_size, y=ANSWERS[i % 2], yc=yc, branch=branch)
        rollout = hand_rollout(blocks, finishes=(finish, finish_c), **texts)
        rollouts.append(rollout if confesses else one_turn(rollout))
        verdicts.append(Verdict(state, ""))
        given_rewards[id(rollouts[-1])] = reward_a, reward_c

    def reward_function(k: int, real):
        given = lambda rollouts: [given_rewards[id(rollout)][k] for rollout in rollouts]
        return lambda rollouts: [
            r if g == "real" else g for r, g in zip(real(rollouts), given(rollouts))
        ]

    score_rollouts(
        rollouts, verdicts, word_count, reward_function(0, judge_reward), reward_function(1, reward)
    )
    options = {"confession_advantage_scale": "group"} | options
    weights = {
        "task_weight": WEIGHTS["answer"],
        "confession_weight": WEIGHTS["confession"],
        "normaliser": normaliser,
    }
    config = Config(group_size=group_size, confessions_per_answer=each, **weights, **options)
    assign_advantages(rollouts, config)
    out = {
        name: [bytes(4 * (r.spans[name].end - r.spans[name].start)) for r in rollouts]
        for name in WEIGHTS
    }  # untrained: 0.0
    for rows, batch in grpo.trained_batches(rollouts, config, 30, torch.device("cpu")):
        left = -gradient_of_logprobs(batch, config)
        for i in rows:
            for name, span in rollouts[i].spans.items():
                trained = (name == "confession" or rollouts[i].branch == 0) and span.advantage
                length = span.end - span.start if trained else 0
                own, left = left[:length], left[length:]
                out[name][i] = own.numpy().tobytes() or out[name][i]
        assert len(left) == 0
    return out


def gradient_of_logprobs(batch, config: Config) -> torch.Tensor:
    """(N,) of the loss that grpo.update takes of a micro-batch, at the old policy."""
    logprobs = batch.old_logprobs.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "token_logprobs", lambda *_: logprobs)
        loss, _ = grpo.batch_loss(None, None, batch, config)
    loss.backward()
    return logprobs.grad


LENGTHS, FINISHES = st.integers(1, 12), st.sampled_from(("stop", "length"))
REWARDS = st.sampled_from(("real", None)) | st.floats(-2, 2)
ONE_ANSWER = st.tuples(LENGTHS, FINISHES, st.sampled_from(("pass", "fail", "failed")), REWARDS)
ONE_CONFESSION = st.tuples(LENGTHS, FINISHES, st.sampled_from(CONFESSIONS), REWARDS)


@st.composite
def two_worlds(draw, changed: str):
    """(answers, confessions, the other version of the changed side, group size,
    options) for one to three groups.
    """
    group_size, each = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    n = group_size * groups
    side = lambda one, n: draw(
        st.lists(one, min_size=n, max_size=n) | one.map(lambda alike: [alike] * n)
    )
    answers, confessions = side(ONE_ANSWER, n), side(ONE_CONFESSION, n * each)
    other = side(ONE_ANSWER, n) if changed == "answers" else side(ONE_CONFESSION, n * each)
    options = {f"{span}_advantage_scale": draw(st.sampled_from(SCALES)) for span in WEIGHTS}
    # any group but not none
    options["asked"] = [True] + draw(st.lists(st.booleans(), min_size=groups - 1, max_size=2))
    return (
        answers,
        confessions,
        other,
        group_size,
        options | {"reward": draw(st.sampled_from((honesty_reward, information_reward)))},
    )


@pytest.mark.parametrize("normaliser", NORMALISERS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(two_worlds("confessions"))
def test_confessions_change_no_coefficient_of_an_answer(normaliser, worlds):
    """Some reward, parse result,
    length or truncation of a confession reaches the loss of an answer's tokens.
    """
    answers, confessions, other, group_size, options = worlds
    before, after = (
        coefficients(answers, side, group_size, normaliser, **options)
        for side in (confessions, other)
    )
    assert before["answer"] == after["answer"]


@pytest.mark.parametrize("normaliser", NORMALISERS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(two_worlds("answers"))
def test_answers_change_no_coefficient_of_a_confession(normaliser, worlds):
    """Some verdict, reward, length or truncation of an answer reaches the loss of a confession's
    tokens (y itself is what the confession is about: it stays).
    """
    answers, confessions, other, group_size, options = worlds
    before, after = (
        coefficients(side, confessions, group_size, normaliser, **options)
        for side in (answers, other)
    )
    assert before["confession"] == after["confession"]


def leak_in_a_batch(rollouts, weights, device):
    batch = make_batch(rollouts, weights, device)
    batch.advantages = (
        batch.advantages
        + 1e-6 * sum(r.confession.reward or 0.0 for r in rollouts) * ~batch.is_confession
    )
    return batch


def leak_in_a_weight(rollouts, span, *options):
    longest = max(r.confession.end - r.confession.start for r in rollouts)
    return [
        w * (1 + longest / 1e5 if span == "answer" else 1)
        for w in span_weights(rollouts, span, *options)
    ]


def leak_in_a_loss(logprobs, old_logprobs, advantages, *clips):
    return token_losses(logprobs, old_logprobs, advantages, *clips) * (1 + 1e-6 * len(advantages))


@pytest.mark.parametrize(
    "place, leak",
    [
        ("make_batch", leak_in_a_batch),
        ("span_weights", leak_in_a_weight),
        ("token_losses", leak_in_a_loss),
    ],
)
def test_a_planted_leak_is_found(monkeypatch, place, leak):
    """The property tests above look at numbers that grpo.update does not use:
    a leak there would escape them.
    """
    monkeypatch.setattr(grpo, place, leak)
    answers = [(2, "stop", "pass", "real"), (4, "stop", "fail", "real")]
    sides = (
        [(3, "stop", CONFESSIONS[0], "real")] * 2,
        [(5, "stop", CONFESSIONS[0], 0.5), (3, "stop", "", "real")],
    )
    before, after = (coefficients(answers, side, 2, "sequence")["answer"] for side in sides)
    assert before != after


def test_information_reward_is_sealed_from_the_judge():
    """Its coefficients move with the answers' rewards or verdicts,
    or do not move with the answers' truths.
    """
    answers = [(2, "stop", verdict, "real") for verdict in ("pass", "fail", "pass", "pass")]
    other = [
        (2, "stop", verdict, 0.3 * i)
        for i, verdict in enumerate(("fail", "pass", "failed", "pass"))
    ]
    # an honest one and a dishonest one of each answer
    confessions = [(3, "stop", CONFESSIONS[i % 2], "real") for i in range(8)]
    of = lambda side: coefficients(
        side, confessions, 4, "sequence", information_reward, confession_advantage_scale="none"
    )
    bits = of(answers)["confession"]
    assert bits == of(other)["confession"]
    # Half of the answers comply, so t - mean is +-1/2, rewards are +-1/4 and so are advantages;
    # 8 spans of 3 tokens share 0.7.
    signs = [s for wrong in (True, False, True, False) for s in ((-1, 1) if wrong else (1, -1))]
    for b, sign in zip(bits, signs, strict=True):
        assert torch.frombuffer(bytearray(b), dtype=torch.float32).tolist() == pytest.approx(
            [sign * 0.25 * 0.7 / 24] * 3
        )


def test_groups_that_do_not_confess_leave_the_others_confessions_alone():
    """With --confession-share the mean is over all rollouts, so confessions are trained a quarter
    as hard; or answers of groups that do not confess are not trained, or more than the others.
    """
    answers = [(2, "stop", verdict, "real") for verdict in ("pass", "fail") * 2]
    confessions = [(3, "stop", CONFESSIONS[0], 0.1 * i) for i in range(8)]
    for each in (1, 2):
        of = lambda n, asked: coefficients(
            answers[:n], confessions[: n * each], 2, "sequence", asked=asked
        )
        alone, beside = of(2, [True]), of(4, [True, False])
        everywhere = of(4, [True, True])
        assert beside["confession"][: 2 * each] == alone["confession"]
        assert any(map(any, alone["confession"]))
        assert not any(map(any, beside["confession"][2 * each :]))
        kept = lambda found: [b for b in found["answer"] if any(b)]
        assert kept(beside) == kept(everywhere) and len(kept(beside)) == 4


def test_an_answer_with_several_confessions_is_trained_once():
    """Its tokens count K times, or its siblings' copies of them are trained too."""
    answers, confessions = (
        [(2, "stop", "pass", "real"), (4, "stop", "fail", "real")],
        [(3, "stop", "", 0.1 * i) for i in range(6)],
    )
    once = coefficients(answers, confessions[::3], 2, "sequence")["answer"]
    found = coefficients(answers, confessions, 2, "sequence")["answer"]
    assert found[::3] == once and all(not any(b) for i, b in enumerate(found) if i % 3)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_coefficients_of_a_known_case(normaliser):
    """The coefficients that the tests above compare are not weight * advantage at all,
    so their equality means nothing.
    """
    # rewards 1, 0: advantages +-0.5 / 0.5001
    answers = [(2, "stop", "pass", "real"), (4, "length", "fail", "real")]
    # 0.25 and -0.2: +-0.225 / 0.2251
    confessions = [(3, "stop", CONFESSIONS[0], 0.25), (1, "stop", "", "real")]
    bits = coefficients(answers, confessions, 2, normaliser)
    a, c = 0.5 / 0.5001, 0.225 / 0.2251
    if normaliser == "token":
        expected = {
            "answer": [[a / 6] * 2, [-a / 6] * 4],
            "confession": [[0.7 * c / 4] * 3, [-0.7 * c / 4]],
        }
    else:
        expected = {
            "answer": [[a / 4] * 2, [-a / 8] * 4],
            "confession": [[0.7 * c / 6] * 3, [-0.7 * c / 2]],
        }
    for name in WEIGHTS:
        found = [torch.frombuffer(bytearray(b), dtype=torch.float32).tolist() for b in bits[name]]
        for values, wanted in zip(found, expected[name], strict=True):
            assert values == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("text, parsed", [(text, i < 2) for i, text in enumerate(CONFESSIONS)])
def test_confessions_of_this_file_parse_as_meant(text, parsed):
    """The cases above no longer hold both parsed and unparsed confessions,
    so they do not try what they claim to.
    """
    rollout = hand_rollout(([1], [5], [3], [6]), y=ANSWERS[1], yc=text)
    score_rollouts([rollout], [Verdict("pass", "")], word_count)
    assert (
        isinstance(rollout.report, ConfessionReport if parsed else ParseFailure)
        and rollout.truth.compliant
    )


@pytest.mark.parametrize("clip", [0.0, 0.2])
@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_the_gradient_of_a_logprob_is_its_coefficient(normaliser, clip):
    """At the old policy the loss moves a token's log-probability by something other than
    weight * advantage.
    """
    rollouts = random_rollouts(6)
    weights = {
        name: span_weights(rollouts, name, weight, normaliser) for name, weight in WEIGHTS.items()
    }
    batch = make_batch(rollouts, weights, torch.device("cpu"))
    logprobs = batch.old_logprobs.clone().requires_grad_()
    (
        batch.weights * token_losses(logprobs, batch.old_logprobs, batch.advantages, clip, clip)
    ).sum().backward()
    assert torch.equal(logprobs.grad, -batch.weights * batch.advantages)


def advantages_of(rollouts, k: int, rewards) -> None:
    for rollout, advantage in zip(rollouts, group_advantages(rewards, 4)[0]):
        spans_of(rollout)[k].advantage = advantage


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize(
    "sealed, off", [(0, "confession_weight"), (1, "task_weight")], ids=["answer", "confession"]
)
def test_rewards_of_a_span_of_weight_zero_change_no_gradient(sealed, off, normaliser):
    """With one span switched off, its rewards still reach the model's gradient: training
    "on answers alone" is not.
    """
    model, rng = tiny_model(), random.Random(0)
    rollouts = random_rollouts(8)
    advantages_of(rollouts, sealed, [1.0, 0.0, 0.5, None, 0.0, 0.0, 0.0, 1.0])
    seen = []
    for trial in range(6):
        advantages_of(
            rollouts, 1 - sealed, [rng.choice([None, -0.2, rng.random(), 100.0]) for _ in rollouts]
        )
        seen.append(
            gradients(model, rollouts, normaliser=normaliser, micro_batch_tokens=60, **{off: 0.0})[
                0
            ]
        )
    assert all(torch.any(gradient != 0) for gradient in seen[0].values())
    for other in seen[1:]:
        assert all(torch.equal(seen[0][name], other[name]) for name in other)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_the_loss_is_the_sum_of_two_losses(normaliser):
    """The two spans meet in a term of their own (a product, a shared denominator),
    not only in a sum.
    """
    model, rollouts = tiny_model().double(), random_rollouts(8)
    run = lambda task, confession: gradients(
        model, rollouts, normaliser=normaliser, task_weight=task, confession_weight=confession
    )
    (both, total), (answers, a), (confessions, c) = run(0.5, 2.0), run(0.5, 0.0), run(0.0, 2.0)
    # the terms of its sum are about 1
    assert total["loss"] == pytest.approx(a["loss"] + c["loss"], abs=1e-6)
    assert distance({k: answers[k] + confessions[k] for k in both}, both) < 1e-6
    assert distance(run(1.0, 0.0)[0], {k: 2 * g for k, g in answers.items()}) < 1e-6
