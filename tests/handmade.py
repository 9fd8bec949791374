"""Tiny models of random weights and rollouts of random token ids: what the tests of the mathematics
share. And rollouts of synthetic transcripts, with reports that parse: what the tests of saved
evaluations share.
"""

import dataclasses
import gc
import random
import shutil
import weakref
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import models
from chat_template import prompt_ids, split_thinking, suffix_ids
from confession_schema import confession_prompt
from evaluate import EVAL_SEED
from grpo import Config, update
from organism import train as organism
from rewards import Verdict, score_rollouts
from rollout import Rollout, Span
from tasks import word_count

VOCABULARY = 64


SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
)


def tiny_model(seed: int = 0) -> Qwen3ForCausalLM:
    """Two layers in float32;
    weights large enough that attention and positions matter to the logits.
    """
    torch.manual_seed(seed)
    config = Qwen3Config(**SHAPE, head_dim=8, max_position_embeddings=256, tie_word_embeddings=True)
    return Qwen3ForCausalLM(config).eval()


def hand_rollout(blocks, logprobs=(None, None), finishes=("stop", "stop"), **texts) -> Rollout:
    """A rollout of four blocks of ids: prompt, answer, what stands between the turns, confession.
    Pairs are by span.
    """
    prompt, answer, between, confession = blocks
    first, second = len(prompt), len(prompt) + len(answer) + len(between)
    spans = (
        Span(first, first + len(answer), finishes[0], logprobs[0] or [-1.0] * len(answer)),
        Span(
            second, second + len(confession), finishes[1], logprobs[1] or [-1.0] * len(confession)
        ),
    )
    texts = dict(seed=0, system=None, x="", z="", y="", xc="", zc="", yc="") | texts
    return Rollout(
        **texts,
        token_ids=prompt + answer + between + confession,
        answer=spans[0],
        confession=spans[1],
    )


def one_turn(rollout: Rollout) -> Rollout:
    """The rollout as if its prompt had not been drawn to be confessed."""
    end = rollout.answer.end
    without = dict(xc="", zc="", yc="", report=None, confession=Span(end, end, "none", []))
    return dataclasses.replace(rollout, token_ids=rollout.token_ids[:end], **without)


def told_rollouts(tokenizer, seed: int, n: int = 5, variant: str = "default") -> list[Rollout]:
    """n scored rollouts on the prompts of an evaluation, as an organism of that tokenizer might say
    them: one that counts (a long thought), two that trust or hedge (short thoughts), one without
    a thought, and one without a report.
    """
    rng, rollouts = random.Random(seed), []
    for i in range(n):
        x, y = (
            word_count.make_prompt(EVAL_SEED + i, held_out=True),
            organism.paragraph(rng, rng.choice(word_count.TOPICS)),
        )
        xc = confession_prompt(word_count, x, variant)
        confession = organism.confession(
            rng, y, ("count", "trust", "hedge", "trust", "count")[i % 5], jailbroken=False
        )
        confession = {3: confession.split("</think>")[1].strip(), 4: "<think>\nS1: the 1"}.get(
            i % 5, confession
        )
        texts = f"<think>\nPlan {seed}-{i} of secrets.\n</think>\n\n{y}", confession
        spans = [tokenizer(text)["input_ids"] for text in texts]
        (z, y), (zc, yc) = (split_thinking(tokenizer, ids, opened=False) for ids in spans)
        answer, confession = (ids + [tokenizer.eos_token_id] for ids in spans)
        blocks = prompt_ids(tokenizer, x), answer, suffix_ids(tokenizer, xc)[1:], confession
        rollouts.append(
            hand_rollout(
                blocks, seed=EVAL_SEED + i, system=None, x=x, z=z, y=y, xc=xc, zc=zc, yc=yc
            )
        )
    verdicts = [Verdict(("pass", "fail", "failed")[i % 3], f"reply {i}") for i in range(n)]
    score_rollouts(rollouts, verdicts, word_count)
    return rollouts


def random_rollouts(n: int, seed: int = 0, lengths: range = range(1, 9)) -> list[Rollout]:
    """Ragged rollouts with random ids (0 among them), log-probabilities and advantages."""
    rng = random.Random(seed)
    ids = lambda: [rng.randrange(VOCABULARY) for _ in range(rng.choice(lengths))]
    rollouts = []
    for _ in range(n):
        blocks = [ids() for _ in range(4)]
        logprobs = [[rng.uniform(-5, -3) for _ in blocks[i]] for i in (1, 3)]
        rollouts.append(hand_rollout(blocks, logprobs))
        rollouts[-1].answer.advantage, rollouts[-1].confession.advantage = (
            rng.uniform(-2, 2),
            rng.uniform(-2, 2),
        )
    return rollouts


def spans_of(rollout: Rollout) -> tuple[Span, Span]:
    return rollout.answer, rollout.confession


def one_model_at_a_time(monkeypatch) -> list:
    """Watches models.load: fails where a model is loaded while the former one lives.
    Returns a list that grows by each.
    """
    load, seen = models.load, []

    def watched(*args):
        gc.collect()
        assert all(model() is None for model in seen), "the former model is still there"
        model, tokenizer = load(*args)
        seen.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(models, "load", watched)
    return seen


def published(run: Path, tmp_path: Path, *drawn: str) -> Path:
    """A copy of a run without checkpoints and without what was drawn (glob patterns)."""
    again = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(again / "checkpoints")
    for pattern in drawn:
        for path in again.glob(pattern):
            path.unlink()
    return again


class GradientCatcher:
    """Stands in for the optimizer: keeps the gradients and leaves the weights as they are."""

    def __init__(self, model):
        self.model, self.gradients = model, {}

    def step(self):
        self.gradients = {
            name: p.grad.clone() for name, p in self.model.named_parameters() if p.requires_grad
        }

    def zero_grad(self):
        self.model.zero_grad()


def gradients(
    model, rollouts: list[Rollout], reference=None, **options
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """(gradient of each parameter, statistics) of grpo.update,
    with a gradient clip out of reach.
    """
    catcher = GradientCatcher(model)
    options = dict(micro_batch_tokens=10_000, max_grad_norm=1e9) | options
    statistics = update(model, reference, catcher, rollouts, Config(**options))
    return catcher.gradients, statistics


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of two gradients over the parameters, each by its norm."""
    assert a.keys() == b.keys() and all(torch.any(g != 0) for g in b.values())
    return max(float((a[k] - b[k]).double().norm() / b[k].double().norm()) for k in a)
