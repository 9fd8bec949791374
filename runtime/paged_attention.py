"""Triton kernels of runtime/engine.py: rotary embedding, and attention over a KV cache in blocks.
Imported on CUDA only.

Each program serves one tile of tokens, one KV head and one stretch of the context, and reads that
stretch's keys and values once for all query heads of the group: what a decode step costs is reading
its cache. A tile is one token when decoding; when a prompt is fed, it is several consecutive
tokens of one row.
"""

import torch
import triton
import triton.language as tl

from runtime.few_rows import factor, power_of_2

LEAST = 128  # tokens of context that are worth a program of their own, a multiple of the block
WARPS, STAGES = 4, 2  # of a program that decodes, and of its loads
LOG2_E = 1.4426950408889634  # the kernels compute 2 ** x


@triton.jit
def _rotated(
    x,
    cos,
    sin,
    token,
    d,
    real,
    scale,
    bias,
    norm,
    eps,
    D: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
):
    """Elements d of the head at x, times `scale`, after bias, RMSNorm and the rotary embedding at
    the angles of `token`, computed in float32 and rounded once.
    """
    first = d < D // 2
    other = tl.where(first, d + D // 2, d - D // 2)
    own = tl.load(x + d, mask=real, other=0.0).to(tl.float32) * scale
    partner = tl.load(x + other, mask=real, other=0.0).to(tl.float32) * scale
    if BIAS:
        own += tl.load(bias + d, mask=real, other=0.0).to(tl.float32)
        partner += tl.load(bias + other, mask=real, other=0.0).to(tl.float32)
    if NORM:
        length = tl.rsqrt(tl.sum(own * own, len(own.shape) - 1, keep_dims=True) / D + eps)
        own *= length * tl.load(norm + d).to(tl.float32)
        partner *= length * tl.load(norm + other).to(tl.float32)
    c = tl.load(cos + token * D + d, mask=real, other=0.0).to(tl.float32)
    s = tl.load(sin + token * D + d, mask=real, other=0.0).to(tl.float32)
    turned = own * c + tl.where(first, -1.0, 1.0) * partner * s
    return turned.to(x.dtype.element_ty)


@triton.jit
def _write(
    k,
    v,
    cos,
    sin,
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
    """Put K, rotated, and V of one token and head into its row's block;
    tokens at position -1 are padding.
    """
    i, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    position = tl.load(positions + i)
    if position >= 0:
        block = tl.load(table + tl.load(rows + i) * table_width + position // BLOCK).to(tl.int64)
        d = tl.arange(0, D)
        to = ((block * heads + head) * BLOCK + position % BLOCK) * D + d
        at = k + i * k_stride + head * D
        rotated = _rotated(at, cos, sin, i, d, d >= 0, 1.0, at, at, 0.0, D, False, False)
        tl.store(keys + to, rotated)
        tl.store(values + to, tl.load(v + i * v_stride + head * D + d))


@triton.jit
def _attend(
    q,
    k,
    v,
    cos,
    sin,
    keys,
    values,
    table,
    rows,
    positions,
    arrived,
    squares,
    bias,
    q_norm,
    k_norm,
    out,
    partial,
    stats,
    scale,
    q_stride,
    k_stride,
    v_stride,
    table_width,
    least,
    parts,
    width,
    eps,
    head_eps,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    R: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Softmax attention of TILE tokens x GROUP query heads, rotated here, as R >= TILE * GROUP rows
    of one product. With PARTS > 0 what is attended to is not scaled yet (few_rows.py).

    Decoding (TILE = 1) is this kernel alone: rotating, writing and joining as kernels of their own
    cost half as much again. The first program of a token takes the token's own K and V from
    registers and puts them into the cache. That is no race: no other token of the pass is of this
    row, and whichever value this token's programs read at its place has weight 0.
    """
    tile, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    r, d, n = tl.arange(0, R), tl.arange(0, D), tl.arange(0, BLOCK)
    token = tile * TILE + r // GROUP  # (R,)
    real = r < TILE * GROUP
    query_head = head * GROUP + r % GROUP  # (R,)
    position = tl.load(positions + token, mask=real, other=-1)  # (R,)
    seen = position if TILE == 1 else position + 1  # tokens to read in the cache
    length = tl.maximum(tl.max(seen), 0)
    # the context is split into stretches of `chunk` tokens, one for each of `used` programs
    chunk = tl.maximum(tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK, least)
    used = tl.maximum(tl.cdiv(length, chunk), 1)
    if SPLITS == 1:
        chunk, used = length, 1
    if split >= used:
        return
    start, end = split * chunk, tl.minimum(length, (split + 1) * chunk)
    blocks = table + tl.load(rows + tile * TILE) * table_width
    row_scale = 1.0
    if PARTS > 0:
        row_scale = factor(squares, tile, parts, width, eps, PARTS)
    x = q + (token * q_stride + query_head * D)[:, None]
    x = _rotated(
        x,
        cos,
        sin,
        token[:, None],
        d[None, :],
        real[:, None],
        row_scale,
        bias + (query_head * D)[:, None],
        q_norm,
        head_eps,
        D,
        BIAS,
        NORM,
    )  # (R, D)
    top = tl.full((R,), -1e30, tl.float32)
    total = tl.zeros((R,), tl.float32)
    acc = tl.zeros((R, D), tl.float32)
    if TILE == 1:
        if split == 0:
            of_head = bias + (heads * GROUP + head) * D
            own_k = _rotated(
                k + tile * k_stride + head * D,
                cos,
                sin,
                tile,
                d,
                d >= 0,
                row_scale,
                of_head,
                k_norm,
                head_eps,
                D,
                BIAS,
                NORM,
            )  # (D,)
            own_v = tl.load(v + tile * v_stride + head * D + d)
            if PARTS > 0:
                wide = own_v.to(tl.float32) * row_scale
                if BIAS:
                    wide += tl.load(of_head + heads * D + d).to(tl.float32)
                own_v = wide.to(own_v.dtype)
            if tl.max(position) >= 0:  # it is `length`
                block = tl.load(blocks + length // BLOCK).to(tl.int64)
                to = ((block * heads + head) * BLOCK + length % BLOCK) * D + d
                tl.store(keys + to, own_k)
                tl.store(values + to, own_v)
            top = tl.sum(x.to(tl.float32) * own_k.to(tl.float32)[None, :], 1) * scale
            total += 1.0
            acc += own_v.to(tl.float32)[None, :]
    for first in range(start, end, BLOCK):
        base = (tl.load(blocks + first // BLOCK).to(tl.int64) * heads + head) * BLOCK * D
        block_k = tl.load(keys + base + n[None, :] * D + d[:, None])  # (D, BLOCK)
        block_v = tl.load(values + base + n[:, None] * D + d[None, :])  # (BLOCK, D)
        s = tl.dot(x, block_k, input_precision="ieee") * scale
        s = tl.where(first + n[None, :] < seen[:, None], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
        keep = tl.exp2(top - new_top)
        total = total * keep + tl.sum(p, 1)
        acc = tl.dot(p.to(block_v.dtype), block_v, acc * keep[:, None], input_precision="ieee")
        top = new_top
    at = token * heads * GROUP + query_head  # (R,) in (tokens, query heads)
    to = out + at[:, None] * D + d[None, :]
    if used == 1:
        result = acc / tl.where(total == 0, 1.0, total)[:, None]
        tl.store(to, result.to(out.dtype.element_ty), mask=real[:, None])
    else:
        place = at * SPLITS + split
        tl.store(partial + place[:, None] * D + d[None, :], acc, mask=real[:, None])
        tl.store(stats + place * 2, top, mask=real)
        tl.store(stats + place * 2 + 1, total, mask=real)
        # The last program to arrive joins the stretches. It sees what the others stored: all
        # threads of each had stored (barrier) before one of them counted it (release), and what
        # follows the count (acquire) is read past the cache of the program's own processor.
        tl.debug_barrier()
        counter = arrived + tile * heads + head
        if tl.atomic_add(counter, 1, sem="acq_rel") == used - 1:
            tl.store(counter, 0)  # for the next layer
            top = tl.full((R,), -1e30, tl.float32)
            total = tl.zeros((R,), tl.float32)
            acc = tl.zeros((R, D), tl.float32)
            for i in tl.static_range(SPLITS):
                place = at * SPLITS + i
                mask = real & (place < at * SPLITS + used)
                top_i = tl.load(stats + place * 2, mask=mask, other=-1e30, cache_modifier=".cg")
                total_i = tl.load(stats + place * 2 + 1, mask=mask, other=0.0, cache_modifier=".cg")
                acc_i = tl.load(
                    partial + place[:, None] * D + d[None, :],
                    mask=mask[:, None],
                    other=0.0,
                    cache_modifier=".cg",
                )
                new_top = tl.maximum(top, top_i)
                keep, weight = tl.exp2(top - new_top), tl.exp2(top_i - new_top)
                total = total * keep + total_i * weight
                acc = acc * keep[:, None] + acc_i * weight[:, None]
                top = new_top
            result = acc / tl.where(total == 0, 1.0, total)[:, None]
            tl.store(to, result.to(out.dtype.element_ty), mask=real[:, None])


def attend(
    q,
    k,
    v,
    cos,
    sin,
    keys,
    values,
    table,
    rows,
    positions,
    arrived,
    scale: float,
    tile: int,
    splits: int,
    unscaled: tuple | None = None,
) -> torch.Tensor:
    """Rotate Q and K of N tokens, put K and V into the cache, then attend to it.

    q (N, Hq, D), k and v (N, H, D), cos and sin (N, D) -> (N, Hq, D); keys and values
    (blocks, H, BLOCK, D), table (slots, blocks a slot) int32, rows and positions (N,): the tokens'
    slots and places. `tile` consecutive tokens belong to one slot, and if it is 1, no two tokens
    do. `arrived`: with `splits` N * H zeros (int32), and zeros again afterwards. `unscaled`: the
    few_rows.Stream of which q, k and v are products, and the engine's attention, whose biases and
    norms of heads come after; only with tiles of 1.
    """
    assert tile == 1 or not unscaled, "_write() scales nothing"
    tokens, query_heads, d = q.shape
    _, heads, block, _ = keys.shape
    group = query_heads // heads
    for x in (q, k, v):
        assert x.shape[1] == 1 or x.stride()[1:] == (d, 1), (
            f"heads of a token side by side, not strides {x.stride()}"
        )
    new = k, v, cos.contiguous(), sin.contiguous()
    where = keys, values, table, rows, positions
    if tile > 1:  # tokens of the same pass are read, so all are written before
        _write[(tokens, heads)](
            *new, *where, k.stride(0), v.stride(0), table.stride(0), D=d, BLOCK=block, num_warps=1
        )
    out = q.new_empty(q.shape)
    partial = stats = squares = bias = q_norm = k_norm = out
    parts, width, eps, head_eps, biased, normed = 0, 0, 0.0, 0.0, False, False
    if unscaled:
        stream, attention = unscaled
        squares, eps = stream.squares, stream.eps
        parts, width = squares.shape[1], stream.hidden.shape[1]
        if biased := attention.qkv.bias is not None:
            bias = attention.qkv.bias
        if normed := not isinstance(attention.q_norm, torch.nn.Identity):
            q_norm, k_norm = attention.q_norm.weight, attention.k_norm.weight
            head_eps = attention.q_norm.variance_epsilon
    if splits > 1:
        partial = torch.empty(tokens, query_heads, splits, d, device=q.device)
        stats = torch.empty(tokens, query_heads, splits, 2, device=q.device)
    _attend[(tokens // tile, heads, splits)](
        q,
        *new,
        *where,
        arrived,
        squares,
        bias,
        q_norm,
        k_norm,
        out,
        partial,
        stats,
        scale * LOG2_E,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        table.stride(0),
        LEAST,
        parts,
        width,
        eps,
        head_eps,
        PARTS=power_of_2(parts) if parts else 0,
        BIAS=biased,
        NORM=normed,
        GROUP=group,
        D=d,
        BLOCK=block,
        TILE=tile,
        R=max(16, triton.next_power_of_2(tile * group)),
        SPLITS=splits,
        num_warps=WARPS if tile == 1 else 4,
        num_stages=STAGES if tile == 1 else 2,
    )
    return out
