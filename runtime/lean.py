"""Forward passes of the plain sampler on the CPU in few operations: the model's own modules without
what surrounds them. Same numbers as the model's forward, up to rounding.

Of a small model's decode step most is Python, a mask made again in each layer, and an attention
kernel meant for many queries. Here the mask is made once, and the query heads of a KV head are rows
of one product with its cache. Long blocks (logits) go through by few rows at a time, as what a
layer makes of them then stays in the cache of a core, and in the last layer only the last token is
computed. One token a stream (OneToken) goes through without modules at all, and what is elementwise
is numpy's, whose calls take half the time.
"""

import numpy
import torch
from torch.nn import functional as F

from runtime.engine import rotated, unsupported

TOKENS = 2_048  # of a block that go through the layers together
LOWEST = torch.finfo(torch.float32).min


def supports(model) -> bool:
    """Whether logits() computes this model's forward: float32 on a CPU, of a type that the
    engine knows.
    """
    on_cpu = model.device.type == "cpu"
    return on_cpu and unsupported(model) is None and model.dtype == torch.float32


def logits(model, cache, ids, mask, positions) -> torch.Tensor:
    """Logits (B, V) after the last of the tokens ids (B, T), whose keys and values join the cache.

    mask (B, S): slots that hold a token, those of the new ones last; positions (B, T).
    """
    for store in cache.layers:
        store.hold(mask.shape[1])
    few = max(1, TOKENS // ids.shape[1])
    hidden = [
        last_hidden(model.get_decoder(), cache, slice(first, first + few), ids, mask, positions)
        for first in range(0, len(ids), few)
    ]
    return model.get_output_embeddings()(torch.cat(hidden))


def last_hidden(decoder, cache, rows: slice, ids, mask, positions) -> torch.Tensor:
    """(rows, D) of the last token, for some rows of logits()'s arguments."""
    ids, mask, positions = ids[rows], mask[rows], positions[rows]
    new, slots = ids.shape[1], mask.shape[1]
    # (rows, 1, T, S): a token sees what is before it; not -inf, as padding sees nothing at all
    seen = mask[:, None, None] & torch.ones(new, slots, dtype=torch.bool).tril(slots - new)
    bias = torch.where(seen, 0.0, LOWEST)
    hidden = decoder.embed_tokens(ids)  # (rows, T, D)
    rotary = decoder.rotary_emb(hidden, positions)  # two of (rows, T, head size)
    for layer, store in zip(decoder.layers, cache.layers):
        x = normed(layer.input_layernorm, hidden)
        asked = 1 if layer is decoder.layers[-1] else new  # queries
        hidden = hidden[:, -asked:]
        keys, values = store.keys[rows], store.values[rows]  # (rows, KV heads, S, head size)
        hidden = hidden + attend(layer.self_attn, x, asked, rotary, keys, values, bias)
        hidden = hidden + layer.mlp(normed(layer.post_attention_layernorm, hidden))
    return normed(decoder.norm, hidden)[:, -1]


def attend(attention, x, asked: int, rotary, keys, values, bias) -> torch.Tensor:
    """Output (B, asked, D) of the last `asked` tokens of x (B, T, D); keys and values of all
    are written to the last slots.
    """
    b, new, size = len(x), x.shape[1], attention.head_dim
    cos, sin = (part[:, None] for part in rotary)  # (B, 1, T, size)
    q = attention.q_proj(x[:, -asked:]).view(b, asked, -1, size)
    k, v = (p(x).view(b, new, -1, size) for p in (attention.k_proj, attention.v_proj))
    if hasattr(attention, "q_norm"):
        q, k = normed(attention.q_norm, q), normed(attention.k_norm, k)
    # (B, heads, asked, size)
    q = rotated(q.transpose(1, 2), cos[:, :, -asked:], sin[:, :, -asked:])
    keys[:, :, -new:] = rotated(k.transpose(1, 2), cos, sin)
    values[:, :, -new:] = v.transpose(1, 2)
    bias = bias[:, :, -asked:]
    if asked == 1:
        q = q.reshape(b, keys.shape[1], -1, size) * attention.scaling  # heads of a KV head are rows
        out = (q @ keys.transpose(2, 3)).add_(bias).softmax(-1) @ values
    else:
        out = F.scaled_dot_product_attention(
            q,
            keys.contiguous(),
            values.contiguous(),
            bias,
            scale=attention.scaling,
            enable_gqa=True,
        ).transpose(1, 2)
    return attention.o_proj(out.reshape(b, asked, -1))


def normed(norm, x: torch.Tensor) -> torch.Tensor:
    """What a module of RMSNorm makes of x."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


class OneToken:
    """logits() for one new token a stream; numpy where PyTorch's calls are longer than the work."""

    @staticmethod
    def suits(model) -> bool:
        """Whether its projections are their weights alone: adapters are not."""
        if not supports(model):
            return False
        modules = [m for m in model.get_decoder().layers.modules() if hasattr(m, "in_features")]
        return all(type(module) is torch.nn.Linear for module in modules)

    @torch.no_grad()
    def __init__(self, model):
        decoder = model.get_decoder()
        self.embedding, self.rotary = decoder.embed_tokens, decoder.rotary_emb
        self.layers = [OneTokenLayer(layer) for layer in decoder.layers]
        self.norm, self.head = Norm(decoder.norm), model.get_output_embeddings()

    def logits(self, cache, ids, mask, positions) -> torch.Tensor:
        """As logits(), with T = 1."""
        angle = positions * self.rotary.inv_freq  # (B, head size / 2)
        scale = self.rotary.attention_scaling
        cos, sin = ((part * scale).numpy()[:, None] for part in (angle.cos(), angle.sin()))
        bias = torch.where(mask, 0.0, LOWEST)[:, None]  # (B, 1, S)
        bias = bias.repeat_interleave(self.layers[0].heads, 0)
        hidden = self.embedding(ids[:, 0])  # (B, D)
        for layer, store in zip(self.layers, cache.layers):
            hidden = layer(hidden, cos, sin, bias, store)
        return self.head(self.norm(hidden))


class OneTokenLayer:
    """A decoder layer's part of it."""

    def __init__(self, layer):
        attention, mlp = layer.self_attn, layer.mlp
        inputs = attention.q_proj, attention.k_proj, attention.v_proj
        self.size, self.scale = attention.head_dim, attention.scaling
        self.queries, self.heads = (p.out_features // self.size for p in inputs[:2])
        biases = [p.bias for p in inputs if p.bias is not None]
        weights = torch.cat([p.weight for p in inputs])  # Q, K and V are one product
        self.inputs = weights, torch.cat(biases) if biases else None
        self.out, self.gate, self.up, self.down = (
            (p.weight, p.bias)
            for p in (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        self.activation = mlp.act_fn
        self.before, self.after = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.of_heads = None
        if hasattr(attention, "q_norm"):
            norms = [attention.q_norm] * self.queries + [attention.k_norm] * self.heads
            self.of_heads = Norm(*norms)
        self.buffers = None  # of the cache, when it was looked at last

    def __call__(self, hidden, cos, sin, bias, store) -> torch.Tensor:
        """hidden (B, D) -> (B, D); cos, sin (B, 1, size / 2); bias (B * KV heads, 1, S)."""
        rows, slots = len(hidden), bias.shape[-1]
        if store.buffers is not self.buffers or slots > store.buffers.shape[3]:
            store.hold(slots)
            self.buffers, self.flat = store.buffers, list(store.buffers.flatten(1, 2))
            self.keys, self.values = store.buffers.numpy()
        x = F.linear(self.before(hidden), *self.inputs).numpy().reshape(rows, -1, self.size)
        x, v = x[:, : -self.heads], x[:, -self.heads :]  # Q and K, V
        if self.of_heads:
            x = self.of_heads.array(x)
        first, second = x[..., : self.size // 2], x[..., self.size // 2 :]
        turned = numpy.empty_like(x)
        numpy.subtract(first * cos, second * sin, out=turned[..., : self.size // 2])
        numpy.add(second * cos, first * sin, out=turned[..., self.size // 2 :])
        self.keys[:, :, slots - 1], self.values[:, :, slots - 1] = turned[:, self.queries :], v
        q = torch.from_numpy(turned[:, : self.queries].reshape(rows * self.heads, -1, self.size))
        keys, values = (flat[:, :slots] for flat in self.flat)
        weights = torch.baddbmm(bias, q, keys.transpose(1, 2), alpha=self.scale).softmax(-1)
        hidden = hidden + F.linear(torch.bmm(weights, values).view(rows, -1), *self.out)
        x = self.after(hidden)
        x = self.activation(F.linear(x, *self.gate)) * F.linear(x, *self.up)
        return hidden + F.linear(x, *self.down)


class Norm:
    """What a module of RMSNorm makes of (..., D), or several of them of (..., modules, D)."""

    def __init__(self, *modules):
        weights = [module.weight.detach().numpy() for module in modules]
        self.weight = numpy.stack(weights) if len(weights) > 1 else weights[0]
        self.eps = modules[0].variance_epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.array(x.numpy()))

    def array(self, x: numpy.ndarray) -> numpy.ndarray:
        scale = numpy.vecdot(x, x)
        scale /= x.shape[-1]
        scale += self.eps
        x = x / numpy.sqrt(scale, out=scale)[..., None]
        x *= self.weight
        return x
