"""The mathematics of dual-span GRPO against hand-computed numbers and a slow reference,
and training in the small.
"""

import copy
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo import Config, group_advantages, k3, resolve, span_weights, token_losses, update
from handmade import (
    VOCABULARY,
    distance,
    gradients,
    hand_rollout,
    random_rollouts,
    spans_of,
    tiny_model,
)
from models import token_logprobs
from runtime import optimizer
from runtime.batch import make_batch, micro_batches, trained_lengths
from runtime.decoder import Decoder

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")

# --------------------------------------------------------------------------------------- advantages

S2 = math.sqrt(2)


@pytest.mark.parametrize(
    "rewards, size, expected, without_signal",
    [
        ([1, 0, 0, 1], 4, [1, -1, -1, 1], 0),
        ([1, 0, 0, 0], 4, [3 / math.sqrt(3)] + [-1 / math.sqrt(3)] * 3, 0),
        ([1, 0, 5, 1], 2, [1, -1, 1, -1], 0),  # each group by itself
        ([3, 1, 2, 2], 2, [1, -1, 0, 0], 0.5),
        ([1, None, 0, 1], 4, [S2 / 2, 0, -S2, S2 / 2], 0),  # mean and deviation of 1, 0, 1
        ([None, 0, None, 1], 4, [0, -1, 0, 1], 0),
        ([0.7, None, None, None], 4, [0] * 4, 1),  # a single known reward
        ([None] * 4, 2, [0] * 4, 1),
        ([0.5] * 4, 4, [0] * 4, 1),
        ([-0.2] * 3 + [1, 0, None], 3, [0, 0, 0, 1, -1, 0], 0.5),
    ],
    ids=(
        "half one_of_four groups one_without_signal failed_judge two_known one_known "
        "none_known equal mixed"
    ).split(),
)
def test_group_advantages(rewards, size, expected, without_signal):
    """Advantages differ from (r - mean) / std of the group's known rewards,
    or groups without signal are miscounted.
    """
    advantages, share = group_advantages(rewards, size, eps=0.0)
    assert advantages == pytest.approx(expected, abs=1e-12) and share == without_signal


def test_group_advantages_divide_by_std_plus_eps():
    """The deviation is not the population's, or eps is left out: 0.5 / (0.5 + 0.1)."""
    assert group_advantages([1.0, 0.0], 2, eps=0.1)[0] == pytest.approx([5 / 6, -5 / 6])
    assert group_advantages([1.0, 0.0], 2)[0] == pytest.approx([0.5 / 0.5001, -0.5 / 0.5001])


@pytest.mark.parametrize(
    "scale, expected",
    [
        ("group", [1, -1, 1, -1, 0]),
        # of 1, 0, 5, 1, 3, 3, 4, -1: mean 2
        ("batch", [a / math.sqrt(30 / 8) for a in (0.5, -0.5, 2, -2, 0)]),
        ("none", [0.5, -0.5, 2, -2, 0]),
    ],
)
def test_advantage_scales(scale, expected):
    """An advantage is divided by another deviation than was asked for, or rewards without
    a value are part of it.
    """
    rewards = [1, 0, 5, 1, 3, 3, 4, -1, None, None]
    advantages, without_signal = group_advantages(rewards, 2, scale, eps=0.0)
    assert (
        advantages[:5] == pytest.approx(expected)
        and advantages[-2:] == [0.0, 0.0]
        and without_signal == 2 / 5
    )


def test_the_information_reward_is_not_scaled_unless_asked():
    """By default its advantages are divided by the group's deviation,
    which brings the base rate back.
    """
    resolved = lambda **options: resolve(Config(**options)).confession_advantage_scale
    assert (
        resolved() == "group" and resolved(confession_reward="rewards.information_reward") == "none"
    )
    assert (
        resolved(confession_reward="rewards.information_reward", confession_advantage_scale="batch")
        == "batch"
    )


@pytest.mark.parametrize("n", [3, 6, 8, 13])
def test_rewards_that_differ_by_rounding_give_no_signal(n):
    """Rounding of a mean (three 0.1s) or of a sum (0.1 + 0.2 against 0.3) is blown up to
    advantages of order 1.
    """
    assert group_advantages([0.1] * n, n) == ([0.0] * n, 1.0)
    assert group_advantages([0.1] * n, n, eps=0.0)[0] == [0.0] * n
    assert max(map(abs, group_advantages([0.1 + 0.2] + [0.3] * n, n + 1)[0])) < 1e-9


def test_a_failed_judge_gives_no_gradient_and_stays_in_the_normaliser():
    """A rollout whose judge failed is trained as if it had been failed,
    or the others are weighted up in its place.
    """
    rollouts = random_rollouts(4)
    for rollout, advantage in zip(rollouts, group_advantages([1.0, None, 0.0, 1.0], 4)[0]):
        rollout.answer.advantage = advantage
    assert rollouts[1].answer.advantage == 0.0
    model, options = tiny_model().double(), dict(confession_weight=0.0)
    whole, _ = gradients(model, rollouts, **options)
    # a mean over 3 rollouts, not over 4
    rest, _ = gradients(model, [rollouts[i] for i in (0, 2, 3)], **options)
    assert distance({k: g * 3 / 4 for k, g in rest.items()}, whole) < 1e-6


# --------------------------------------------------------------------------------- losses per token


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 1.0, -1.1, -1.1),
        (1.5, 1.0, -1.3, 0.0),  # clipped above
        (0.5, 1.0, -0.5, -0.5),  # the pessimistic side keeps its gradient
        (1.5, -1.0, 1.5, 1.5),
        (0.5, -1.0, 0.8, 0.0),  # clipped below
        (3.0, 0.0, 0.0, 0.0),
    ],
)
def test_token_losses(ratio, advantage, loss, slope):
    """The clipped surrogate, or its derivative by the log-probability,
    is wrong for this ratio (clip 0.8 to 1.3).
    """
    old = torch.tensor([-2.0], dtype=torch.float64)
    logprob = (old + math.log(ratio)).requires_grad_()
    value = token_losses(logprob, old, torch.tensor([advantage], dtype=torch.float64), 0.2, 0.3)
    value.sum().backward()
    assert value.item() == pytest.approx(loss) and logprob.grad.item() == pytest.approx(slope)


def test_k3():
    """The KL estimate is off, negative, or of the wrong direction:
    its mean under the policy must be KL(policy || other).
    """
    values = k3(
        torch.tensor([-1.0, -1.0, -1.0]),
        torch.tensor([-1.0, -1.0 + math.log(2), -1.0 - math.log(2)]),
    )
    assert values.tolist() == pytest.approx([0.0, 1 - math.log(2), -0.5 + math.log(2)], abs=1e-6)
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    assert (p * k3(p.log(), q.log())).sum().item() == pytest.approx(
        (p * (p / q).log()).sum().item(), abs=1e-6
    )


# ------------------------------------------------------------------------------- what a batch holds


def test_span_weights():
    """A normaliser is wrong:
    the mean over a span's tokens and then rollouts, or the mean over all tokens of that span.
    """
    rollouts = [hand_rollout(([1], [5] * a, [3], [6] * c)) for a, c in ((2, 7), (4, 1))]
    assign(rollouts, 1.0)
    assert span_weights(rollouts, "answer", 3.0, "sequence") == pytest.approx([3 / 4, 3 / 8])
    assert span_weights(rollouts, "confession", 1.0, "sequence") == pytest.approx([1 / 14, 1 / 2])
    assert span_weights(rollouts, "answer", 3.0, "token") == pytest.approx([3 / 6] * 2)
    assert span_weights(rollouts, "confession", 1.0, "token") == pytest.approx([1 / 8] * 2)


def test_a_span_without_gradient_is_not_computed():
    """A span of advantage 0 costs time, its zeroing changes another span's weight,
    or the KL term forgets it.
    """
    rollouts = [hand_rollout(([1], [5] * a, [3], [6] * c)) for a, c in ((2, 7), (4, 1))]
    assign(rollouts, 1.0)
    rollouts[0].confession.advantage = rollouts[1].answer.advantage = rollouts[
        1
    ].confession.advantage = 0.0
    weights = {
        name: span_weights(rollouts, name, 1.0, "sequence") for name in ("answer", "confession")
    }
    assert weights == {"answer": [1 / 4, 0.0], "confession": [0.0, 0.0]}
    assert trained_lengths(rollouts, weights) == {0: 3}
    batch = make_batch(rollouts[:1], {name: w[:1] for name, w in weights.items()}, CPU)
    assert batch.ids.tolist() == [[1, 5, 5]] and batch.trained.tolist() == [[False, True, True]]
    assert span_weights(rollouts, "answer", 1.0, "sequence", kl_coef=0.1) == [1 / 4, 1 / 8]


def test_a_batch_without_signal_takes_no_step():
    """Adam's momentum moves the weights on batches that say nothing."""
    model, rollouts = tiny_model(), random_rollouts(4)
    assign(rollouts, 0.0)
    found, statistics = gradients(model, rollouts)
    assert (
        found == {}
        and statistics["loss"] == statistics["grad_norm"] == 0.0
        and statistics["approx_kl_answer"] is None
    )


def assign(rollouts, advantage: float) -> None:
    for rollout in rollouts:
        rollout.answer.advantage = rollout.confession.advantage = advantage


def small_batch():
    """Two rollouts that stop with 0, the id that also pads;
    0 stands in a prompt and inside an answer too.
    """
    one = hand_rollout(
        ([7, 0], [5, 0, 9, 0], [3, 8], [6, 0]), ([-1.0, -2.0, -3.0, -4.0], [-5.0, -6.0])
    )
    # a stop alone, a cut
    two = hand_rollout(([7], [0], [0, 8], [4, 4]), ([-7.0], [-8.0, -9.0]), ("stop", "length"))
    (
        one.answer.advantage,
        one.confession.advantage,
        two.answer.advantage,
        two.confession.advantage,
    ) = 1.0, 2.0, 3.0, 4.0
    return [one, two], {"answer": [0.1, 0.2], "confession": [0.3, 0.4]}


def test_make_batch():
    """A prompt, a confession prompt or padding is trained, a stop token is not,
    or a token gets another one's numbers.
    """
    batch = make_batch(*small_batch(), CPU)
    assert batch.ids.tolist() == [[7, 0, 5, 0, 9, 0, 3, 8, 6, 0], [7, 0, 0, 8, 4, 4, 0, 0, 0, 0]]
    assert batch.trained.int().tolist() == [
        [0, 0, 1, 1, 1, 1, 0, 0, 1, 1],
        [0, 1, 0, 0, 1, 1, 0, 0, 0, 0],
    ]
    assert batch.is_confession.int().tolist() == [0, 0, 0, 0, 1, 1, 0, 1, 1]
    assert batch.old_logprobs.tolist() == [-1, -2, -3, -4, -5, -6, -7, -8, -9]
    assert batch.advantages.tolist() == [1, 1, 1, 1, 2, 2, 3, 4, 4]
    assert batch.weights.tolist() == pytest.approx([0.1] * 4 + [0.3] * 2 + [0.2] + [0.4] * 2)


def test_missing_logprobs_are_refused():
    """A rollout without its sampler's log-probabilities (one loaded from a file) is trained with
    those of its neighbour.
    """
    rollouts, weights = small_batch()
    rollouts[0].confession.logprobs = []
    with pytest.raises(AssertionError, match="9 trained positions, 7 sampled"):
        make_batch(rollouts, weights, CPU)


def slow_logprobs(model, ids: list[int], temperature: float) -> torch.Tensor:
    """(T, V): row t holds the log-probabilities of the token at t, from the full logits of one
    sequence; row 0 is unused.
    """
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    return torch.cat([logits[:1] * 0, torch.log_softmax(logits[:-1] / temperature, dim=-1)])


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_token_logprobs(temperature):
    """Log-probabilities belong to the wrong position, row or temperature:
    the stop token's among them.
    """
    model, (rollouts, weights) = tiny_model(), small_batch()
    batch = make_batch(rollouts, weights, CPU)
    logprobs = token_logprobs(model, batch.ids, batch.trained, temperature, chunk=4)
    expected = []
    for rollout in rollouts:
        table = slow_logprobs(copy.deepcopy(model).double(), rollout.token_ids, temperature)
        for t in [t for span in spans_of(rollout) for t in range(span.start, span.end)]:
            expected.append(table[t, rollout.token_ids[t]].item())
    assert logprobs.tolist() == pytest.approx(expected, abs=1e-4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 120))
def test_micro_batches(lengths, budget):
    """A rollout is trained twice or never,
    or a padded micro-batch takes more memory than was allowed.
    """
    lengths = dict(enumerate(lengths))
    parts = micro_batches(lengths, budget)
    assert sorted(i for part in parts for i in part) == list(lengths)
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= budget
    assert len(micro_batches(lengths, 10**6)) == 1


# -------------------------------------------------------------- loss and gradient, a slow reference


def slow_loss(
    model, reference, sequences, normaliser: str, temperature: float, clip: float, kl_coef: float
) -> torch.Tensor:
    """Ordinary GRPO in Python loops. sequences: per rollout (ids, {trained position:
    old log-probability}, advantage).
    """
    n_tokens = sum(len(old) for _, old, _ in sequences)
    total = 0.0
    for ids, old, advantage in sequences:
        new, fixed = (
            slow_logprobs(model, ids, temperature),
            slow_logprobs(reference, ids, temperature).detach(),
        )
        loss = 0.0
        for t, old_logprob in old.items():
            ratio = torch.exp(new[t, ids[t]] - old_logprob)
            clipped = min(max(ratio.item(), 1 - clip), 1 + clip)
            surrogate = (
                ratio * advantage
                if ratio.item() * advantage <= clipped * advantage
                else clipped * advantage
            )
            gap = fixed[t, ids[t]] - new[t, ids[t]]
            loss = loss - surrogate + kl_coef * (torch.exp(gap) - gap - 1)
        total = total + (
            loss / n_tokens if normaliser == "token" else loss / len(old) / len(sequences)
        )
    return total


def slow_advantages(rewards, group_size: int) -> list[float]:
    out = []
    for i, reward in enumerate(rewards):
        first = i - i % group_size
        known = torch.tensor(
            [r for r in rewards[first : first + group_size] if r is not None], dtype=torch.float64
        )
        without_signal = reward is None or (known == known[0]).all()
        out.append(
            0.0
            if without_signal
            else ((reward - known.mean()) / (known.std(correction=0) + 1e-4)).item()
        )
    return out


def old_logprobs_by_position(span) -> dict[int, float]:
    return dict(zip(range(span.start, span.end), span.logprobs, strict=True))


def off_policy_rollouts(model, n: int, temperature: float, lengths: range = range(1, 9)):
    """Random rollouts whose old log-probabilities are the model's,
    moved by up to 0.6 either way.
    """
    rng, rollouts = random.Random(1), random_rollouts(n, lengths=lengths)
    for rollout in rollouts:
        table = slow_logprobs(model, rollout.token_ids, temperature)
        for span in spans_of(rollout):
            span.logprobs = [
                table[t, rollout.token_ids[t]].item() + rng.uniform(-0.6, 0.6)
                for t in range(span.start, span.end)
            ]
    return rollouts


def gradient_of(loss, model) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, parameters.values())))


REWARDS = {
    "answer": [1.0, 0.0, 0.0, 1.0, None, 1.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5],
    "confession": [-0.2, 0.3, 0.9, 1.0, 0.1, 0.1, 0.1, 0.7, None, None, 0.4, 0.8],
}


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("normaliser", ["sequence", "token"])
def test_update_equals_a_slow_reference(normaliser, kl_coef, dtype, tolerance):
    """The loss, its gradient or the logged statistics are not those of dual-span GRPO, with ratios
    beyond the clip range on both sides, judges that failed, groups without signal, and a KL term.
    """
    model, reference = tiny_model(0).to(dtype), tiny_model(1).to(dtype)
    options = dict(
        normaliser=normaliser,
        temperature=0.7,
        kl_coef=kl_coef,
        task_weight=0.5,
        confession_weight=2.0,
    )
    slow_model, slow_reference = copy.deepcopy(model).double(), copy.deepcopy(reference).double()
    rollouts = off_policy_rollouts(slow_model, 12, 0.7)
    for k, name in enumerate(REWARDS):
        for rollout, advantage in zip(rollouts, group_advantages(REWARDS[name], 4)[0]):
            spans_of(rollout)[k].advantage = advantage
    found, statistics = gradients(
        model, rollouts, reference, micro_batch_tokens=80, clip_low=0.2, clip_high=0.2, **options
    )

    loss, kinds = 0.0, set()
    for k, (name, weight) in enumerate((("answer", 0.5), ("confession", 2.0))):
        advantages = slow_advantages(REWARDS[name], 4)
        spans = [old_logprobs_by_position(spans_of(rollout)[k]) for rollout in rollouts]
        sequences = [
            (rollout.token_ids, old, a) for rollout, old, a in zip(rollouts, spans, advantages)
        ]
        loss = loss + weight * slow_loss(
            slow_model, slow_reference, sequences, normaliser, 0.7, 0.2, kl_coef / weight
        )
        tables = [slow_logprobs(slow_model, ids, 0.7) for ids, _, _ in sequences]
        # a span of advantage 0 is not computed
        seen = [(table, s) for table, s in zip(tables, sequences) if s[2] or kl_coef]
        gaps = [
            (table[t, ids[t]].item() - o, a)
            for table, (ids, old, a) in seen
            for t, o in old.items()
        ]
        outside = [(gap > 0, a > 0) for gap, a in gaps if not 0.8 <= math.exp(gap) <= 1.2]
        kinds |= {pair for pair, (_, a) in zip(outside, gaps)}
        assert statistics[f"logprob_gap_{name}"] == pytest.approx(
            sum(abs(g) for g, _ in gaps) / len(gaps), rel=1e-4
        )
        assert statistics[f"approx_kl_{name}"] == pytest.approx(
            sum(math.exp(g) - 1 - g for g, _ in gaps) / len(gaps), rel=1e-4
        )
        assert statistics[f"clipfrac_{name}"] == pytest.approx(len(outside) / len(gaps))
    assert len(kinds) == 4  # ratios above and below the range, each with advantages of both signs
    expected = gradient_of(loss, slow_model)
    assert statistics["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert statistics["grad_norm"] == pytest.approx(
        math.sqrt(sum(float(g.pow(2).sum()) for g in expected.values())), rel=1e-4
    )
    assert distance(found, expected) < tolerance


@pytest.mark.parametrize("normaliser", ["sequence", "token"])
def test_one_reward_for_both_spans_is_ordinary_grpo(normaliser):
    """Cutting a rollout in two spans changes the algorithm itself and not only who is
    rewarded for what.

    The spans get the same advantage, and weights that undo the two normalisers. token: 1 / (tokens
    of the span) becomes 1 / (all tokens) with each span's share of the tokens as its weight.
    sequence: the mean over both spans is half the mean over each if they are equally long, so both
    weights are 0.5.
    """
    model = tiny_model().double()
    rollouts = off_policy_rollouts(
        model, 8, 1.0, lengths=range(4, 5) if normaliser == "sequence" else range(1, 9)
    )
    for rollout, advantage in zip(
        rollouts, slow_advantages([1.0, 0.0, 0.3, None, 0.2, 0.1, 0.9, 0.0], 4)
    ):
        rollout.answer.advantage = rollout.confession.advantage = advantage
    answers, confessions = (
        sum(len(spans_of(rollout)[k].logprobs) for rollout in rollouts) for k in (0, 1)
    )
    weights = dict(
        task_weight=answers / (answers + confessions),
        confession_weight=confessions / (answers + confessions),
    )
    assert weights["task_weight"] == 0.5 or normaliser == "token"
    found, statistics = gradients(model, rollouts, normaliser=normaliser, **weights)
    union = [
        {t: o for span in spans_of(rollout) for t, o in old_logprobs_by_position(span).items()}
        for rollout in rollouts
    ]
    sequences = [
        (rollout.token_ids, old, rollout.answer.advantage) for rollout, old in zip(rollouts, union)
    ]
    loss = slow_loss(model, model, sequences, normaliser, 1.0, 0.2, 0.0)
    assert statistics["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert distance(found, gradient_of(loss, model)) < 1e-6


# ------------------------------------------------------------- what must not matter to the gradient


@pytest.mark.parametrize("normaliser", ["sequence", "token"])
@pytest.mark.parametrize("change", ["micro_batches", "order", "gradient_checkpointing"])
def test_the_gradient_does_not_depend_on_how_it_is_computed(change, normaliser):
    """A batch in pieces, in another order or with recomputed activations gives another gradient
    than in one piece.
    """
    model, rollouts = tiny_model().double(), random_rollouts(12)
    options = dict(normaliser=normaliser, confession_weight=0.5, temperature=0.7)
    expected, _ = gradients(model, rollouts, **options)
    if change == "micro_batches":
        others = [
            gradients(model, rollouts, micro_batch_tokens=budget, **options)[0]
            for budget in (1, 40, 90)
        ]
    elif change == "order":
        others = [
            gradients(model, order, **options)[0]
            for order in (rollouts[::-1], rollouts[5:] + rollouts[:5])
        ]
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        others = [gradients(model, rollouts, **options)[0]]
    assert all(distance(other, expected) < 1e-6 for other in others)


def scored_gradient(model, batch, ids, trained, **options) -> dict[str, torch.Tensor]:
    logprobs = token_logprobs(model, ids, trained, 0.7, **options)
    losses = token_losses(logprobs, batch.old_logprobs, batch.advantages, 0.2, 0.2)
    return gradient_of((batch.weights * losses).sum(), model)


@pytest.mark.parametrize("pad", [0, 5, VOCABULARY - 1])
@pytest.mark.parametrize("chunk", [1, 3, 10_000])
def test_padding_and_chunks_change_no_gradient(chunk, pad):
    """More padding on the right, another pad id (5 and 0 are sampled ones), or smaller chunks
    of the LM head matter.
    """
    model, rollouts = tiny_model().double(), random_rollouts(6)
    weights = {
        name: span_weights(rollouts, name, 1.0, "sequence") for name in ("answer", "confession")
    }
    batch = make_batch(rollouts, weights, CPU)
    ids = torch.nn.functional.pad(batch.ids, (0, 7), value=pad)
    trained = torch.nn.functional.pad(batch.trained, (0, 7))
    for i, rollout in enumerate(rollouts):
        ids[i, len(rollout.token_ids) :] = pad
    expected = scored_gradient(model, batch, batch.ids, batch.trained)
    assert distance(scored_gradient(model, batch, ids, trained, chunk=chunk), expected) < 1e-6


def test_update_leaves_its_rollouts_alone():
    """A second update on the same batch (updates_per_batch) or the saved rollouts see numbers that
    the first one changed.
    """
    model, rollouts = tiny_model(), random_rollouts(6)
    before = copy.deepcopy(rollouts)
    first, _ = gradients(model, rollouts)
    second, _ = gradients(model, rollouts)
    assert rollouts == before and not model.training
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_gradient_that_is_not_finite_takes_no_step():
    """A NaN reaches the weights, and the run goes on with a dead model."""
    model, rollouts = tiny_model(), random_rollouts(4)
    rollouts[0].answer.advantage = math.nan
    before = copy.deepcopy(model.state_dict())
    stats = update(
        model,
        None,
        torch.optim.SGD(model.parameters(), lr=1.0),
        rollouts,
        Config(micro_batch_tokens=1_000),
    )
    assert (
        stats["skipped"]
        and stats["grad_norm"] is None
        and all(p.grad is None for p in model.parameters())
        and not model.training
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# --------------------------------------------------------------------------------- with the sampler

STOPS, SUFFIX = [0, 1, 2, 3], [0, 60, 61]


def sampled_rollouts(
    model, prompts: list[list[int]], temperature: float, seed: int, max_new_tokens: int = 12
):
    """Two turns of the real sampler over prompts of ids;
    the streams are joined as sample_rollouts joins them.
    """
    decoder = Decoder(model, STOPS, temperature, torch.Generator().manual_seed(seed))
    decoder.append(prompts)
    answers, answer_logprobs, _ = decoder.sample(max_new_tokens)
    joints = [SUFFIX[1:] if ids[-1] == SUFFIX[0] else SUFFIX for ids in answers]
    decoder.append(joints)
    confessions, confession_logprobs, _ = decoder.sample(max_new_tokens, last=True)
    finish = lambda ids: "stop" if ids[-1] in STOPS else "length"
    return [
        hand_rollout(blocks, logprobs, (finish(blocks[1]), finish(blocks[3])))
        for *blocks, logprobs in zip(
            prompts, answers, joints, confessions, zip(answer_logprobs, confession_logprobs)
        )
    ]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_what_was_sampled_is_what_is_scored(temperature):
    """Sampler and trainer disagree on a token's log-probability (cache, positions, padding,
    temperature), so the ratio is not 1 on fresh rollouts and clipping acts on noise.
    """
    model, rng = tiny_model(), random.Random(0)
    prompts = [
        [rng.randrange(VOCABULARY) for _ in range(n)]
        for n in (1, 9, 4, 2, 17, 4, 30, 3, 1, 6, 5, 12) * 2
    ]
    rollouts = sampled_rollouts(model, prompts, temperature, seed=0)
    finishes = [(rollout.answer.finish, rollout.confession.finish) for rollout in rollouts]
    # cut and stopped, ragged
    assert len(set(finishes)) == 4 and len({rollout.answer.end for rollout in rollouts}) > 6
    assign(rollouts, 1.0)
    weights = {
        name: span_weights(rollouts, name, 1.0, "sequence") for name in ("answer", "confession")
    }
    batch = make_batch(rollouts, weights, CPU)
    with torch.no_grad():
        logprobs = token_logprobs(model, batch.ids, batch.trained, temperature)
        other = token_logprobs(model, batch.ids, batch.trained, temperature + 0.1)
    assert (logprobs - batch.old_logprobs).abs().max() < 1e-4
    # a difference that the line above would see
    assert (other - batch.old_logprobs).abs().max() > 0.1


def test_rewarded_tokens_become_likely_and_punished_ones_unlikely():
    """Training does not train: tokens that are rewarded in answers and punished in confessions
    must rise in the one span and fall in the other, which takes both signs, both spans and
    the sampler at once.
    """
    model, tokens, group_size = tiny_model(), range(VOCABULARY // 2, VOCABULARY), 8
    prompts = [[10 + i] * (2 + i) for i in range(4) for _ in range(group_size)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    config = Config(micro_batch_tokens=300)
    share = lambda ids: sum(t in tokens for t in ids) / len(ids)
    shares = []  # per step, of the answers and of the confessions
    for step in range(40):
        rollouts = sampled_rollouts(model, prompts, 1.0, seed=step, max_new_tokens=6)
        shares.append([])
        for k, sign in enumerate((1, -1)):
            spans = [spans_of(rollout)[k] for rollout in rollouts]
            rewards = [
                sign * share(rollout.token_ids[span.start : span.end])
                for rollout, span in zip(rollouts, spans)
            ]
            shares[-1].append(abs(sum(rewards)) / len(rewards))
            for span, advantage in zip(spans, group_advantages(rewards, group_size)[0]):
                span.advantage = advantage
        statistics = update(model, None, optimizer, rollouts, config)
        assert (
            max(statistics[f"logprob_gap_{name}"] or 0.0 for name in ("answer", "confession"))
            < 1e-4
        )  # fresh rollouts: ratio 1
    assert all(0.3 < start < 0.7 for start in shares[0])
    assert (
        min(answer for answer, _ in shares[-5:]) > 0.9
        and max(confession for _, confession in shares[-5:]) < 0.1
    )


def test_the_optimizers_step_compiles_for_any_size():
    """On a GPU it is compiled: what the compiler cannot trace ends all-parameter training there."""
    options = dict(lr=1e-3, weight_decay=0.1, eps=1e-8, amsgrad=False, maximize=False)
    options |= dict(beta1=0.9, beta2=0.95, capturable=False)
    out = []
    with torch.no_grad(), torch._dynamo.config.patch(specialize_float=True):
        compiled = torch.compile(optimizer.move, dynamic=True, backend="aot_eager")
        for move in (optimizer.move, compiled):
            for size in (40, 56):
                torch.manual_seed(0)
                weight, mean, square, gradient = torch.rand(4, size).bfloat16().unbind()
                move(weight, mean, square, gradient, torch.tensor(2.0), options)
                out.append(torch.stack([weight, mean, square]))
    assert torch.equal(out[0], out[2]) and torch.equal(out[1], out[3])
