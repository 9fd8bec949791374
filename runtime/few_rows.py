"""A decode step of few rows through a model's layers: six kernels a layer instead of eleven to
fourteen, as a step of a small model is as long as it has kernels. Imported on CUDA only.

No kernel is an RMSNorm: the product before it adds the residual stream, multiplies by the norm's
weight and leaves each row's sum of squares, and what comes after scales the row. The products of
the attention's output and of the MLP's are Triton's, as they end in all of this; those with more
outputs are the library's, which are faster there.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

MOST = 64  # rows; with more, kernels take longer and their number matters less
STAGES = 5  # loads of a product that are under way, where shared memory holds as many
LEAST = 512  # inputs that are worth a program of their own


@dataclass
class Stream:
    """The residual stream between two blocks; norm(hidden) is weighted * factor()."""

    hidden: torch.Tensor  # (B, D)
    weighted: torch.Tensor  # (B, D), hidden * the weight of the norm that comes next
    squares: torch.Tensor  # (B, parts), float32: their sum is that of hidden ** 2
    eps: float  # of the norm

    def factor(self) -> torch.Tensor:
        """(B, 1), float32."""
        return (self.squares.sum(1, keepdim=True) / self.hidden.shape[1] + self.eps).rsqrt()


def suits(model) -> bool:
    """Whether forward() computes this model's."""
    config = model.config.get_text_config()
    layer = model.get_decoder().layers[0]
    outputs = layer.self_attn.o_proj, layer.mlp.down_proj
    plain = all(p.bias is None and not p.in_features % 64 for p in outputs)
    plain = plain and layer.mlp.gate_up.bias is None and config.hidden_act == "silu"
    # float16 would overflow: what is multiplied is not normalised yet
    return plain and model.dtype == torch.bfloat16


def forward(decoder, hidden, angles, attend) -> tuple[torch.Tensor, torch.Tensor]:
    """The decoder's last hidden state as (N, D) and its factor (N, 1), from embeddings (N, D) and
    cosines and sines (N, head size). attend: as Engine.attend.
    """
    norms = [n for x in decoder.layers for n in (x.input_layernorm, x.post_attention_layernorm)]
    norms = iter([*norms, decoder.norm])
    stream = entered(hidden, next(norms))
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = F.linear(stream.weighted, attention.qkv.weight)
        q, k, v = (x.unflatten(-1, (-1, attention.head_dim)) for x in attention.qkv.parts(qkv))
        out = attend(q, k, v, *angles, attention.scaling, unscaled=(stream, attention))
        stream = added(stream, out.flatten(1), attention.o_proj.weight, next(norms))
        gate_up = F.linear(stream.weighted, mlp.gate_up.weight)
        stream = added(stream, gated(gate_up, stream), mlp.down_proj.weight, next(norms))
    return stream.weighted, stream.factor()


def entered(hidden, norm) -> Stream:
    squares = hidden.float().square().sum(1, keepdim=True)
    return Stream(hidden, hidden * norm.weight, squares, norm.variance_epsilon)


def added(stream: Stream, x, weight, norm) -> Stream:
    """The stream with x @ weight.T added to it, x (B, in), weight (D, in), before a norm."""
    rows, inputs = x.shape
    outputs = len(weight)
    n, splits, k = shape_of(outputs, inputs, x.device)
    m, tiles = 16 if rows <= 16 else 64, triton.cdiv(outputs, n)  # few kernels to compile
    hidden, weighted = x.new_empty(2, rows, outputs)
    squares = torch.empty(rows, tiles, device=x.device)
    partial = torch.empty(splits, tiles, m, n, device=x.device) if splits > 1 else squares
    _added[(tiles, splits)](
        x,
        weight,
        stream.hidden,
        norm.weight,
        hidden,
        weighted,
        squares,
        partial,
        arrived(x.device),
        rows,
        outputs,
        inputs,
        M=m,
        N=n,
        K=k,
        SPLITS=splits,
        num_warps=4,
        num_stages=max(2, min(STAGES, shared_memory(x.device) // ((m + n) * k * x.itemsize))),
    )
    return Stream(hidden, weighted, squares, norm.variance_epsilon)


def shape_of(outputs: int, inputs: int, device) -> tuple[int, int, int]:
    """(outputs of a program, stretches of the inputs, inputs that are loaded together): one program
    for each multiprocessor, if there is work for as many.
    """
    n = 16 if inputs < 2_048 else 32 if inputs < 8_192 else 64
    programs, splits = torch.cuda.get_device_properties(device).multi_processor_count, 1
    while 2 * splits * triton.cdiv(outputs, n) <= programs and inputs >= 2 * splits * LEAST:
        splits *= 2
    return n, splits, 64 if inputs % 128 else 128


def shared_memory(device) -> int:
    """Bytes that a program can have."""
    if device.type != "cuda":  # Triton's interpreter
        return 2**16
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 48 * 2**10)


ARRIVED = {}  # by device: of a tile of outputs, programs that have summed their stretch


def arrived(device) -> torch.Tensor:
    """Zeros, and zeros again after each kernel."""
    if device not in ARRIVED:
        ARRIVED[device] = torch.zeros(4_096, dtype=torch.int32, device=device)
    return ARRIVED[device]


@triton.jit
def _added(
    x,
    weight,
    residual,
    norm,
    hidden,
    weighted,
    squares,
    partial,
    arrived,
    rows,
    outputs,
    inputs,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """N outputs of all M >= rows rows, summed over one stretch of the inputs; the last program to
    arrive adds the stretches up, always in one order, and the residual stream.
    """
    tile, split, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    m, k, own = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    n = tile * N + own
    real = m < rows
    row = (n % outputs).to(tl.int64) * inputs
    chunk = tl.cdiv(tl.cdiv(inputs, SPLITS), K) * K
    acc = tl.zeros((M, N), tl.float32)
    for first in range(split * chunk, tl.minimum(inputs, (split + 1) * chunk), K):
        a = tl.load(x + m[:, None] * inputs + first + k[None, :], mask=real[:, None], other=0.0)
        w = tl.load(weight + row[None, :] + first + k[:, None])
        acc = tl.dot(a, w, acc, input_precision="ieee")
    if SPLITS > 1:
        at = m[:, None] * N + own[None, :]
        tl.store(partial + (split * tiles + tile) * (M * N) + at, acc)
        # as in paged_attention.py: what others stored is seen
        tl.debug_barrier()
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") != SPLITS - 1:
            return
        tl.store(arrived + tile, 0)
        acc = tl.zeros((M, N), tl.float32)
        for i in tl.static_range(SPLITS):
            acc += tl.load(partial + (i * tiles + tile) * (M * N) + at, cache_modifier=".cg")
    to = m[:, None] * outputs + n[None, :]
    mask = real[:, None] & (n < outputs)[None, :]
    acc += tl.load(residual + to, mask=mask, other=0.0).to(tl.float32)
    out = tl.where(mask, acc, 0.0).to(hidden.dtype.element_ty)
    tl.store(hidden + to, out, mask=mask)
    out = out.to(tl.float32)
    tl.store(squares + m * tiles + tile, tl.sum(out * out, 1), mask=real)
    out *= tl.load(norm + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    tl.store(weighted + to, out.to(weighted.dtype.element_ty), mask=mask)


def power_of_2(parts: int) -> int:
    """At least `parts`, and 128 for most models, which then share what is compiled."""
    return max(128, triton.next_power_of_2(parts))


@triton.jit
def factor(squares, row, parts, width, eps, PARTS: tl.constexpr):
    """What scales a row of a Stream."""
    part = tl.arange(0, PARTS)
    of = tl.load(squares + row * parts + part, mask=part < parts, other=0.0)
    return tl.rsqrt(tl.sum(of) / width + eps)


@triton.jit
def _gated(x, squares, out, parts, width, eps, inner, PARTS: tl.constexpr, N: tl.constexpr):
    row, n = tl.program_id(0), tl.program_id(1) * N + tl.arange(0, N)
    scale = factor(squares, row, parts, width, eps, PARTS)
    at = x + row * 2 * inner + n
    gate = tl.load(at, mask=n < inner, other=0.0).to(tl.float32) * scale
    up = tl.load(at + inner, mask=n < inner, other=0.0).to(tl.float32) * scale
    result = gate * tl.sigmoid(gate) * up
    tl.store(out + row * inner + n, result.to(out.dtype.element_ty), mask=n < inner)


def gated(gate_up, stream: Stream) -> torch.Tensor:
    """silu(gate) * up (B, inner) of the scaled rows of gate_up (B, 2 * inner)."""
    rows, inner = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, inner)
    parts, width = stream.squares.shape[1], stream.hidden.shape[1]
    _gated[(rows, triton.cdiv(inner, 1_024))](
        gate_up,
        stream.squares,
        out,
        parts,
        width,
        stream.eps,
        inner,
        PARTS=power_of_2(parts),
        N=1_024,
    )
    return out
