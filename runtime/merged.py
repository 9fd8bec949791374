"""LoRA's training pass on the sampler's own weights, in which the adapters are merged.

A layer with adapters computes W x + s B A x and takes gradients both ways: six products more for
each projection, narrow ones, and a small model's step on a GPU is spent on launching them. Where
the engine (runtime/engine.py) keeps W' = W + s B A, the forward pass is W' x alone, the gradient of
x is that of W', and those of A and B take two narrow products each, which projections of one input
(Q, K and V; gate and up) share. What is trained is what was sampled, rounded alike; grpo.py's
merging_gap() sees whether it is what the adapters say.
"""

import weakref
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import nn
from torch.nn import functional as F

from models import LORA_TARGETS, are_compiled, compile_layers, is_plain
from runtime import engine, streams

NETWORKS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by model, as they are compiled


@contextmanager
def merged_adapters(model):
    """The network to train in the model's place, whose gradients the model's adapters have in the
    end; the model itself where no engine is kept, or adapters are not those of models.add_lora().
    """
    kept = engine.KEPT.get(model)
    if kept is None or not suits(model) or not kept.refresh():
        yield model
        return
    if model not in NETWORKS:
        NETWORKS[model] = network_of(model, kept.model)
    layers = NETWORKS[model].get_decoder().layers
    projections = [ours for layer in layers for ours in projections_of(layer)]
    samplers = [one for layer in kept.model.get_decoder().layers for one in projections_of(layer)]
    for ours, sampler in zip(projections, samplers, strict=True):
        ours.take(sampler)
    try:
        yield NETWORKS[model]
        for ours in projections:
            ours.hand_back()
    finally:  # the engine may go before the network is wanted again
        for ours in projections:
            ours.let_go()


def suits(model) -> bool:
    """Whether each projection has adapters as models.add_lora() makes them, switched on, nothing
    else is trained, and no activations are recomputed.
    """
    modules = dict(model.get_decoder().layers.named_modules())
    targets = [module for name, module in modules.items() if name.split(".")[-1] in LORA_TARGETS]
    recomputes = any(
        getattr(module, "gradient_checkpointing", False) for module in modules.values()
    )
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    only = trained == 2 * len(targets)  # no adapters of the head, no biases
    return all(map(is_plain, targets)) and only and not recomputes


def projections_of(layer) -> tuple:
    attention, mlp = layer.self_attn, layer.mlp
    return attention.qkv, attention.o_proj, mlp.gate_up, mlp.down_proj


def network_of(model, sampler) -> nn.Module:
    """A module like the model, whose projections are Adapted and whose other tensors are those of
    its sampling copy, which are the model's.
    """
    base = model.get_base_model()
    out = streams.network_of(base, sampler, Adapted)
    for ours, theirs in zip(out.get_decoder().layers, base.get_decoder().layers):
        ours.self_attn.o_proj = Adapted(theirs.self_attn.o_proj)
        ours.mlp.down_proj = Adapted(theirs.mlp.down_proj)
    for name, parameter in out.named_parameters():
        parameter.requires_grad_(name.endswith((".of_a", ".of_b")))
    if are_compiled(model):
        compile_layers(out)
    return out


class Adapted(nn.Module):
    """Projections of one input with adapters, as one product with their merged weights.

    Their A stand below each other, their B, each times its scale, in blocks of a diagonal.
    """

    def __init__(self, *loras):
        super().__init__()
        self.loras = [(lora, lora.active_adapters[0]) for lora in loras]
        self.sizes = [lora.base_layer.out_features for lora in loras]
        a = [lora.lora_A[name].weight for lora, name in self.loras]
        self.places = list(zip(_stretches(self.sizes), _stretches([len(part) for part in a])))
        # what is trained; only their gradients are used
        self.of_a = nn.Parameter(torch.cat(a).detach())  # (R, in)
        self.of_b = nn.Parameter(self.of_a.new_zeros(sum(self.sizes), len(self.of_a)))  # (out, R)

    @torch.no_grad()
    def take(self, sampler) -> None:
        """Have the present weights: the sampler's, and those of the adapters."""
        self.weight, self.bias = sampler.weight.detach(), sampler.bias
        for (lora, name), (rows, columns) in zip(self.loras, self.places):
            self.of_a[columns] = lora.lora_A[name].weight
            self.of_b[rows, columns] = lora.lora_B[name].weight * lora.scaling[name]
        self.a, self.b = (part.detach().to(self.weight.dtype) for part in (self.of_a, self.of_b))

    def hand_back(self) -> None:
        """Give the adapters their gradients."""
        if self.of_a.grad is None:
            return
        for (lora, name), (rows, columns) in zip(self.loras, self.places):
            lora.lora_A[name].weight.grad = self.of_a.grad[columns]
            lora.lora_B[name].weight.grad = self.of_b.grad[rows, columns] * lora.scaling[name]

    def let_go(self) -> None:
        """Keep no memory but that of the factors."""
        self.weight = self.bias = self.a = self.b = self.of_a.grad = self.of_b.grad = None

    def forward(self, x):
        """(..., in) -> (..., out), or one of these for each of several projections."""
        out = Merged.apply(x, self.weight, self.bias, self.of_a, self.of_b, self.a, self.b)
        return out if len(self.sizes) == 1 else out.split(self.sizes, -1)


def _stretches(sizes: list[int]) -> list[slice]:
    """Where parts of these sizes lie, one after the other."""
    ends = list(accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends)]


class Merged(torch.autograd.Function):
    """x W'^T + bias; of_a and of_b get the gradients of A and B, whose values are a and b."""

    @staticmethod
    def forward(ctx, x, weight, bias, of_a, of_b, a, b):
        ctx.save_for_backward(x, weight, a, b)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, a, b = ctx.saved_tensors
        of_x = gradient @ weight
        x, gradient = x.flatten(0, -2), gradient.flatten(0, -2)  # (tokens, in), (tokens, out)
        of_a, of_b = (gradient @ b).T @ x, gradient.T @ (x @ a.T)
        return of_x, None, None, of_a.float(), of_b.float(), None, None
