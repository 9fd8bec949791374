"""Triton kernels of runtime/engine.py: attention over a KV cache in blocks. Imported on CUDA only.

Each program serves one tile of tokens, one KV head and one stretch of the context, and reads that
stretch's keys and values once for all query heads of the group: what a decode step costs is reading
its cache. A tile is one token when decoding; when a prompt is fed, it is several consecutive
tokens of one row.
"""

import torch
import triton
import triton.language as tl

LEAST = 256  # tokens of context that are worth a program of their own
LOG2_E = 1.4426950408889634  # the kernels compute 2 ** x


@triton.jit
def _write(
    k,
    v,
    keys,
    values,
    table,
    rows,
    positions,
    k_stride,
    v_stride,
    table_width,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Put K and V of one token and head into its row's block; tokens at position -1 are padding."""
    i, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    position = tl.load(positions + i)
    if position >= 0:
        block = tl.load(table + tl.load(rows + i) * table_width + position // BLOCK).to(tl.int64)
        d = tl.arange(0, D)
        to = ((block * heads + head) * BLOCK + position % BLOCK) * D + d
        tl.store(keys + to, tl.load(k + i * k_stride + head * D + d))
        tl.store(values + to, tl.load(v + i * v_stride + head * D + d))


@triton.jit
def _attend(
    q,
    keys,
    values,
    table,
    rows,
    positions,
    out,
    partial,
    stats,
    scale,
    table_width,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    R: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
):
    """Softmax attention of TILE tokens x GROUP query heads,
    as R >= TILE * GROUP rows of one product.
    """
    tile, head, split, heads = (
        tl.program_id(0),
        tl.program_id(1),
        tl.program_id(2),
        tl.num_programs(1),
    )
    r, d, n = tl.arange(0, R), tl.arange(0, D), tl.arange(0, BLOCK)
    token = tile * TILE + r // GROUP
    real = r < TILE * GROUP
    position = tl.load(positions + token, mask=real, other=-1)  # (R,)
    at = (token.to(tl.int64) * heads + head) * GROUP + r % GROUP  # (R,) in (tokens, query heads)
    x = tl.load(q + at[:, None] * D + d[None, :], mask=real[:, None], other=0.0)  # (R, D)
    end = tl.max(position) + 1
    chunk = end if SPLITS == 1 else tl.maximum(tl.cdiv(tl.cdiv(end, SPLITS), BLOCK) * BLOCK, LEAST)
    start, end = split * chunk, tl.minimum(end, (split + 1) * chunk)
    blocks = table + tl.load(rows + tile * TILE) * table_width
    top = tl.full((R,), -1e30, tl.float32)
    total = tl.zeros((R,), tl.float32)
    acc = tl.zeros((R, D), tl.float32)
    for first in range(start, end, BLOCK):
        base = (tl.load(blocks + first // BLOCK).to(tl.int64) * heads + head) * BLOCK * D
        k = tl.load(keys + base + n[None, :] * D + d[:, None])  # (D, BLOCK)
        v = tl.load(values + base + n[:, None] * D + d[None, :])  # (BLOCK, D)
        s = tl.dot(x, k, input_precision="ieee") * scale
        s = tl.where(first + n[None, :] <= position[:, None], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
        keep = tl.exp2(top - new_top)
        total = total * keep + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None], input_precision="ieee")
        top = new_top
    if SPLITS == 1:
        result = acc / tl.where(total == 0, 1.0, total)[:, None]
        tl.store(
            out + at[:, None] * D + d[None, :], result.to(out.dtype.element_ty), mask=real[:, None]
        )
    else:
        to = at * SPLITS + split
        tl.store(partial + to[:, None] * D + d[None, :], acc, mask=real[:, None] & (start < end))
        tl.store(stats + to * 2, top, mask=real)
        tl.store(stats + to * 2 + 1, total, mask=real)


@triton.jit
def _merge(partial, stats, out, D: tl.constexpr, SPLITS: tl.constexpr):
    """Join the stretches of one token and query head."""
    i = tl.program_id(0).to(tl.int64)
    s, d = tl.arange(0, SPLITS), tl.arange(0, D)
    top, total = tl.load(stats + (i * SPLITS + s) * 2), tl.load(stats + (i * SPLITS + s) * 2 + 1)
    weight = tl.exp2(top - tl.max(top, 0))
    total = tl.sum(weight * total, 0)
    acc = tl.load(
        partial + (i * SPLITS + s[:, None]) * D + d[None, :],
        mask=(total * weight > 0)[:, None],
        other=0.0,
    )
    result = tl.sum(acc * weight[:, None], 0) / tl.where(total == 0, 1.0, total)
    tl.store(out + i * D + d, result.to(out.dtype.element_ty))


def attend(
    q, k, v, keys, values, table, rows, positions, scale: float, tile: int, splits: int
) -> torch.Tensor:
    """Write K and V of N tokens into the cache, then attend to it.

    q (N, Hq, D), k and v (N, H, D) -> (N, Hq, D); keys and values (blocks, H, BLOCK, D), table
    (slots, blocks a slot) int32, rows and positions (N,): the tokens' slots and places. `tile`
    consecutive tokens belong to one slot.
    """
    tokens, query_heads, d = q.shape
    _, heads, block, _ = keys.shape
    group = query_heads // heads
    assert heads == 1 or k.stride()[1:] == v.stride()[1:] == (d, 1), (
        f"heads of a token side by side, not strides {k.stride()}, {v.stride()}"
    )
    where = keys, values, table, rows, positions
    _write[(tokens, heads)](
        k, v, *where, k.stride(0), v.stride(0), table.stride(0), D=d, BLOCK=block, num_warps=1
    )
    out = torch.empty_like(q)
    partial = stats = out
    if splits > 1:
        partial = torch.empty(tokens, query_heads, splits, d, device=q.device)
        stats = torch.empty(tokens, query_heads, splits, 2, device=q.device)
    _attend[(tokens // tile, heads, splits)](
        q,
        *where,
        out,
        partial,
        stats,
        scale * LOG2_E,
        table.stride(0),
        GROUP=group,
        D=d,
        BLOCK=block,
        TILE=tile,
        R=max(16, triton.next_power_of_2(tile * group)),
        SPLITS=splits,
        LEAST=LEAST,
        num_warps=4,
        num_stages=2,
    )
    if splits > 1:
        _merge[(tokens * query_heads,)](partial, stats, out, D=d, SPLITS=splits, num_warps=1)
    return out
