"""A forward pass of the plain sampler on the CPU in few operations: the model's own modules without
what surrounds them. Same numbers as the model's forward, up to rounding.

Of a small model's decode step most is Python, a mask made again in each layer, and an attention
kernel meant for many queries. Here the mask is made once, and the query heads of a KV head are rows
of one product with its cache. Long blocks go through by few rows at a time, as what a layer makes
of them then stays in the cache of a core, and in the last layer only the last token is computed.
"""

import torch
from torch.nn import functional as F

from runtime.engine import unsupported

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
        store.extend(ids.shape[1])
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


def rotated(x, cos, sin) -> torch.Tensor:
    """x (B, heads, T, size) at positions whose angles have these cosines and sines."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def normed(norm, x: torch.Tensor) -> torch.Tensor:
    """What a module of RMSNorm makes of x."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
