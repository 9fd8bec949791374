"""Tiny models of random weights and rollouts of random token ids: what the tests of the mathematics share."""

import random

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from grpo import Config, update
from rollout import Rollout, Span

VOCABULARY = 64


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For a module that imports it: threads only wait for each other in models of this size, for seconds on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_model(seed: int = 0) -> Qwen3ForCausalLM:
    """Two layers in float32; weights large enough that attention and positions matter to the logits."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def hand_rollout(blocks, logprobs=(None, None), finishes=("stop", "stop"), **texts) -> Rollout:
    """A rollout of four blocks of ids: prompt, answer, what stands between the turns, confession. Pairs are by span."""
    prompt, answer, between, confession = blocks
    first, second = len(prompt), len(prompt) + len(answer) + len(between)
    spans = (
        Span(first, first + len(answer), finishes[0], logprobs[0] or [-1.0] * len(answer)),
        Span(second, second + len(confession), finishes[1], logprobs[1] or [-1.0] * len(confession)),
    )
    texts = dict(seed=0, system=None, x="", z="", y="", xc="", zc="", yc="") | texts
    return Rollout(**texts, token_ids=prompt + answer + between + confession, answer=spans[0], confession=spans[1])


def random_rollouts(n: int, seed: int = 0, lengths: range = range(1, 9)) -> list[Rollout]:
    """Ragged rollouts with random ids (0 among them), log-probabilities and advantages."""
    rng = random.Random(seed)
    ids = lambda: [rng.randrange(VOCABULARY) for _ in range(rng.choice(lengths))]
    rollouts = []
    for _ in range(n):
        blocks = [ids() for _ in range(4)]
        logprobs = [[rng.uniform(-5, -3) for _ in blocks[i]] for i in (1, 3)]
        rollouts.append(hand_rollout(blocks, logprobs))
        rollouts[-1].answer.advantage, rollouts[-1].confession.advantage = rng.uniform(-2, 2), rng.uniform(-2, 2)
    return rollouts


def spans_of(rollout: Rollout) -> tuple[Span, Span]:
    return rollout.answer, rollout.confession


class GradientCatcher:
    """Stands in for the optimizer: keeps the gradients and leaves the weights as they are."""

    def __init__(self, model):
        self.model, self.gradients = model, {}

    def step(self):
        self.gradients = {name: p.grad.clone() for name, p in self.model.named_parameters()}

    def zero_grad(self):
        self.model.zero_grad()


def gradients(model, rollouts: list[Rollout], reference=None, **options) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """(gradient of each parameter, statistics) of grpo.update, with a gradient clip out of reach."""
    catcher = GradientCatcher(model)
    options = dict(micro_batch_tokens=10_000, max_grad_norm=1e9) | options
    statistics = update(model, reference, catcher, rollouts, Config(**options))
    return catcher.gradients, statistics


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of two gradients over the parameters, each by its norm."""
    assert a.keys() == b.keys() and all(torch.any(g != 0) for g in b.values())
    return max(float((a[k] - b[k]).double().norm() / b[k].double().norm()) for k in a)
