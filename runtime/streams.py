"""Forward passes of whole streams (B, T), padded on the right, in few operations: projections of
one input are one product, and attention is causal, without a mask or a KV cache.

LoRA is trained so (runtime/merged.py), and a small judge on a GPU judges so (scores()): the plain
sampler's operations, thousands for a batch, take it longer to launch than to compute.
"""

import copy
import weakref
from types import MethodType, SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from models import SMALL, compiled_layer
from runtime import engine

# by model: (whether its layers are compiled, where the model's weights lie, network)
NETWORKS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
HEAD_ROWS = 16_384  # of the vocabulary that are float32 at a time


def network_of(base, others, joined) -> nn.Module:
    """A module like the model `base`, of one of engine.KNOWN types, for whole streams.

    joined(*modules): what stands for the projections of one input; others: a module that has all
    other weights by base's names.
    """
    with torch.device("meta"):
        out = type(base)(copy.deepcopy(base.config))
    for ours, theirs in zip(out.get_decoder().layers, base.get_decoder().layers):
        attention, mlp = theirs.self_attn, theirs.mlp
        qkv = joined(attention.q_proj, attention.k_proj, attention.v_proj)
        ours.self_attn = Attention(ours.self_attn, qkv)
        ours.mlp = engine.MLP(ours.mlp, joined(mlp.gate_proj, mlp.up_proj))
    engine.fill(out, others.state_dict(), base)
    out.get_decoder().forward = MethodType(forward, out.get_decoder())
    return out.eval()


def forward(decoder, input_ids, use_cache: bool) -> SimpleNamespace:
    """Last hidden states of whole streams (B, T); to make a mask, which none needs, transformers'
    own forward waits for the device.
    """
    hidden = decoder.embed_tokens(input_ids)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    angles = decoder.rotary_emb(hidden, positions)  # two of (1, T, D)
    return SimpleNamespace(last_hidden_state=engine.through_layers(decoder, hidden, angles))


class Attention(engine.Attention):
    """Of whole streams, padded on the right, so that none needs a mask."""

    def forward(self, hidden_states, position_embeddings, **kwargs):
        """(B, T, hidden), two of (1, T, D) -> (B, T, hidden), and no weights."""
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv(hidden_states))
        cos, sin = (part[:, :, None] for part in position_embeddings)
        q, k = (engine.rotated(x, cos, sin) for x in (self.q_norm(q), self.k_norm(k)))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, heads, T, D)
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.scaling, enable_gqa=True
        )
        return self.o_proj(out.transpose(1, 2).flatten(2)), None


# -------------------------------------------------------------------------------------- for a judge


def suits(model) -> bool:
    """Whether scores() is the faster way to judge with this model, and knows its type: of a large
    one kernels take the time, and what prompts share should be fed once (decoder.Decoder).
    """
    known = model.device.type == "cuda" and engine.unsupported(model) is None
    if not known or model.num_parameters() >= SMALL:
        return False
    projections = [m for m in model.get_decoder().layers.modules() if hasattr(m, "in_features")]
    return all(type(module) is nn.Linear for module in projections)  # no adapters


def network(model, compiles: bool) -> nn.Module:
    """The model's weights for whole streams, kept while they stay where they are. Nothing is stored
    twice: what is joined here is a view of it in the model from now on.
    """
    at = lambda: [parameter.data_ptr() for parameter in model.parameters()]
    if NETWORKS.get(model, (None, None))[:2] != (compiles, at()):
        NETWORKS.pop(model, None)
        with torch.no_grad():
            out = network_of(model, model, fused)
        if compiles:
            for layer in out.get_decoder().layers:
                layer.forward = compiled_layer(layer.forward)
        NETWORKS[model] = compiles, at(), out
    return NETWORKS[model][-1]


def fused(*projections: nn.Linear) -> engine.FusedLinear:
    """One product for them; their own weights are views of it afterwards."""
    out = engine.FusedLinear(projections, [])
    for kind in ("weight", "bias"):
        if (whole := getattr(out, kind)) is not None:
            for projection, part in zip(projections, whole.split(out.sizes)):
                getattr(projection, kind).data = part
    return out


def scores(
    model, prompts: list[list[int]], replies: list[list[int]], tokens: int, compiles: bool = False
) -> torch.Tensor:
    """(N, C) log-probability of each reply after each prompt, summed over its tokens, up to a
    constant of the prompt; decoder.Decoder.score() has none.

    tokens: of a batch, with its padding; a prompt that is longer is a batch by itself.
    """
    stems, longest = len(rows_of(replies)[0]), max(map(len, replies))
    todo = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    net, order, out = network(model, compiles), [], []
    while todo:
        most = tokens // (stems * (len(prompts[todo[-1]]) + longest - 1))
        batch, todo = todo[-max(1, most) :], todo[: -max(1, most)]
        order += batch
        out.append(_scores(net, [prompts[i] for i in batch], replies))
    return torch.cat(out).cpu()[torch.tensor(order).argsort()]


@torch.inference_mode()
def _scores(network, prompts: list[list[int]], replies: list[list[int]]) -> torch.Tensor:
    """scores() of a batch. In float32 from the last hidden states on, as rewards.float32_head();
    only at replies, and of the head what they need.
    """
    stems, of_reply = rows_of(replies)
    rows = [prompt + stem for prompt in prompts for stem in stems]
    width, longest = max(map(len, rows)), max(map(len, replies))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])  # (B * stems, T)
    row = torch.arange(len(prompts))[:, None] * len(stems) + torch.tensor(of_reply)  # (B, C)
    last = torch.tensor([[len(prompt) - 1] for prompt in prompts])  # (B, 1)
    targets = torch.tensor([reply + [0] * (longest - len(reply)) for reply in replies])  # (C, L)
    real = torch.tensor([[t < len(reply) for t in range(longest)] for reply in replies])  # (C, L)
    places = (row * width + last)[..., None] + torch.arange(longest)  # (B, C, L)

    ids, places, targets, real = (x.to(network.device) for x in (ids, places, targets, real))
    hidden = network.get_decoder()(ids, use_cache=False).last_hidden_state
    hidden = hidden.flatten(0, 1)[places].float()  # (B, C, L, D)
    weight = network.get_output_embeddings().weight
    logits = torch.linalg.vecdot(hidden, weight[targets].float())  # (B, C, L)
    if longest > 1:  # else all replies have the same normaliser
        logits = logits - normalisers(hidden, weight)
    return torch.where(real, logits, 0.0).sum(-1)


def rows_of(replies: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """(what each row of a prompt goes on with, the row that each reply is read off): a reply needs
    its tokens but the last one, and no row of its own if another one begins with them.

    >>> rows_of([[7], [8, 9], [6, 5, 4], [8, 3, 2]])
    ([[6, 5], [8, 3]], [0, 1, 0, 1])
    """
    stems = [reply[:-1] for reply in replies]
    begins = lambda row, stem: row[: len(stem)] == stem
    rows = []
    for stem in sorted(stems, key=len, reverse=True):
        if not any(begins(row, stem) for row in rows):
            rows.append(stem)
    return rows, [[begins(row, stem) for row in rows].index(True) for stem in stems]


def normalisers(hidden, weight) -> torch.Tensor:
    """log sum exp (...) of the logits of hidden (..., D), without a float32 copy of the head
    (V, D), which may be larger than what is judged.
    """
    parts = [F.linear(hidden, rows.float()).logsumexp(-1) for rows in weight.split(HEAD_ROWS)]
    return torch.stack(parts).logsumexp(0)
