"""The plain sampler's short way on a CPU computes what the model's own forward does. A mistake here
shows in a run's first steps as a gap between sampler and trainer, and ends it.
"""

import copy

import pytest
import torch

from runtime import lean
from runtime.decoder import Decoder, GrowingLayer

pytestmark = pytest.mark.usefixtures("one_thread")

# left padding, a stream that begins later, long and short blocks
BLOCKS = ([[5, 6, 7, 8], [9], [10, 11]], [[12] * 9, [13, 14, 15], [16] * 7])


@torch.inference_mode()
def seen(model, temperature: float = 1.0) -> list:
    """Everything that a Decoder gives out in two turns, three streams made of two, and scores."""
    decoder = Decoder(model, [3], temperature, torch.Generator().manual_seed(0))
    out = []
    for blocks in BLOCKS:
        decoder.append(blocks)
        out += [decoder.logits, *decoder.sample(12)]
    decoder.append([[17], [18, 19], [20]])
    decoder.branch([0, 2, 2])
    return [*out, decoder.logits, decoder.score([[4, 5], [6], [7, 8, 9]])]


def test_the_short_way_changes_nothing(tiny, monkeypatch):
    """Positions, masks, heads, or the cache of a stream are mixed up."""
    model, known = tiny[0], tiny[0].config.model_type in ("qwen3", "llama")
    assert lean.supports(model) == known
    calls, blocks, tokens = set(), lean.logits, lean.OneToken.logits
    monkeypatch.setattr(lean, "logits", lambda *args: calls.add("block") or blocks(*args))
    one_token = lambda *args: calls.add("token") or tokens(*args)
    monkeypatch.setattr(lean.OneToken, "logits", one_token)
    monkeypatch.setattr(lean, "TOKENS", 10)  # so that long blocks go through in parts
    monkeypatch.setattr(GrowingLayer, "room", 5)  # so that the cache grows while tokens are drawn
    short = seen(model)
    assert calls == ({"block", "token"} if known else set())
    monkeypatch.setattr(lean, "supports", lambda model: False)
    for a, b in zip(short, seen(model), strict=True):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        elif isinstance(a[0], list) and isinstance(a[0][0], int):
            assert a == b
        else:
            for x, y in zip(a, b):
                assert x == pytest.approx(y, abs=1e-5)


@pytest.mark.parametrize("tiny", ["qwen3"], indirect=True)
def test_other_precisions_take_the_models_own_forward(tiny):
    """bfloat16 products would round the attention's weights, which the model's forward does not."""
    assert not lean.supports(copy.deepcopy(tiny[0]).bfloat16())


class Adapted(torch.nn.Linear):
    """Stands for a projection with an adapter: more than its weight."""

    def forward(self, x):
        return super().forward(x) + 1.0


@pytest.mark.parametrize("tiny", ["qwen3"], indirect=True)
def test_adapters_are_not_left_out(tiny, monkeypatch):
    """One token a stream goes through weights without their modules."""
    model = copy.deepcopy(tiny[0])
    attention = model.get_decoder().layers[0].self_attn
    adapted = Adapted(attention.q_proj.in_features, attention.q_proj.out_features, bias=False)
    adapted.weight = attention.q_proj.weight
    attention.q_proj = adapted
    short = seen(model)
    monkeypatch.setattr(lean, "supports", lambda model: False)
    assert short[1] == seen(model)[1]
