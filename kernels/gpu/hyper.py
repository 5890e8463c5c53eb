"""Manifold-constrained hyper-connections (V4 spec 2.3, 2.10). Twins: `kernels/hyper.py`.

`hc_pre` takes two launches. The product of the streams with `fn` is long and narrow, so it is cut into many parts along
K (`_mix`); then one program per row adds the parts up in order and reads the streams again for their weighted sum
(`_read`). Between sublayers `_mix` also writes the streams, where rows are few: each part then reads all of them. `fn`
is float32 and the streams are bf16: `fn` enters as the sum of three bf16 values, which holds its 24 bits, so tensor
cores form exact products.
"""

from typing import Any

import torch
from torch import Tensor

from holdfast.kernels.gpu.gemm import linear_bf16
from holdfast.kernels.gpu.jit import dot, kernel, launch, next_power_of_two, tl
from holdfast.kernels.gpu.norm import inverse_rms
from holdfast.kernels.gpu.quant import round_bf16, to_bf16

PART = 256  # columns of a part
FEW_ROWS = 16  # of one tile: up to here a launch costs more than reading the streams M times
MIXED = 32  # room for (2 + M) * M sums


def embed(ids: Tensor, table: Tensor, copies: int) -> Tensor:
    """ids int32 [N], table bf16 [V, D] -> streams bf16 [N, copies, D]."""
    streams = torch.empty(len(ids), copies, table.shape[1], dtype=torch.bfloat16, device=table.device)
    launch(_embed, (len(ids),), ids, table, streams, COPIES=copies, D=table.shape[1], BLOCK=1024)
    return streams


def hc_pre(streams: Tensor, w: Any) -> tuple[Tensor, Tensor, Tensor]:
    """streams bf16 [N, M, D] -> x bf16 [N, D], post float32 [N, M], comb float32 [N, M, M].

    w.fn is float32 [(2 + M) * M, M * D].
    """
    post, comb = _mixing_like(streams)
    return _reduce(streams, w, post, comb, w.iters), post, comb


def hc_post(out: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """X'_k = post_k * out + sum_j comb[j, k] * X_j, bf16 [N, M, D]."""
    num_rows, m, d = streams.shape
    written = torch.empty_like(streams)
    grid = (-(-d // 1024), num_rows)
    launch(_write, grid, out, streams, post, comb, written, M=m, D=d, BLOCK=1024)
    return written


def hc_next(out: Tensor, streams: Tensor, post: Tensor, comb: Tensor, w: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`hc_post`, and `hc_pre` of the streams that it writes: the same bits in a launch less for few rows."""
    if len(streams) > FEW_ROWS:
        streams = hc_post(out, streams, post, comb)
        return streams, *hc_pre(streams, w)
    written, (next_post, next_comb) = torch.empty_like(streams), _mixing_like(streams)
    x = _reduce(written, w, next_post, next_comb, w.iters, (out, streams, post, comb))
    return written, x, next_post, next_comb


def lm_head(streams: Tensor, w: Any) -> Tensor:
    """streams bf16 [N, M, D] -> logits float32 [N, V]. w.fn is float32 [M, M * D], w.lm_head bf16 [V, D]."""
    return linear_bf16(_reduce(streams, w, None, None, 0), w.lm_head, torch.float32, w.vocab_size)


def _mixing_like(streams: Tensor) -> tuple[Tensor, Tensor]:
    """Room for post [N, M] and comb [N, M, M]."""
    num_rows, m, _ = streams.shape
    return torch.empty(num_rows, m, device=streams.device), torch.empty(num_rows, m, m, device=streams.device)


def _reduce(
    streams: Tensor, w: Any, post: Tensor | None, comb: Tensor | None, iters: int, source: tuple[Tensor, ...] = ()
) -> Tensor:
    """The weighted sum of the streams, normalised: bf16 [N, D].

    With a `source`, arguments of `hc_post`, they are written first.
    """
    num_rows, m, d = streams.shape
    depth, count = m * d, len(w.fn)
    num_parts = -(-depth // PART)
    parts = torch.empty(num_rows, num_parts, MIXED, device=streams.device)
    x = torch.empty(num_rows, d, dtype=torch.bfloat16, device=streams.device)
    block_rows, num_warps = (FEW_ROWS, 4) if num_rows <= FEW_ROWS else (64, 8)
    launch(
        _mix,
        (-(-num_rows // block_rows), num_parts),
        streams,
        w.fn,
        parts,
        *(source or (None,) * 4),
        num_rows,
        M=m,
        D=d,
        COUNT=count,
        WRITES=bool(source),
        PARTS=num_parts,
        PART=PART,
        MIXED=MIXED,
        STEP=64,
        BLOCK_ROWS=block_rows,
        num_warps=num_warps,
    )
    launch(
        _read,
        (1 if comb is None else 2, num_rows),
        streams,
        parts,
        w.base,
        w.norm,
        x,
        post,
        comb,
        w.hc_eps,
        w.norm_eps,
        M=m,
        D=d,
        ITERS=iters,
        PARTS=num_parts,
        MIXED=MIXED,
        BLOCK_D=next_power_of_two(d),
        BLOCK_PARTS=next_power_of_two(num_parts),
        num_warps=8,
    )
    return x


@kernel
def _embed(ids, table, streams, COPIES: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(ids + row).to(tl.int64)
    for start in range(0, D, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(table + token * D + columns, mask=columns < D)
        for copy in tl.static_range(COPIES):
            tl.store(streams + (row * COPIES + copy) * D + columns, values, mask=columns < D)


@kernel
def _mix(
    streams,
    fn,
    parts,
    out,
    old,
    post,
    comb,
    num_rows,
    M: tl.constexpr,
    D: tl.constexpr,
    COUNT: tl.constexpr,
    WRITES: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    MIXED: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Grid (tiles of rows, parts of K = M * D): the products of fn [COUNT, K] with the rows over PART columns, to parts
    [N, PARTS, MIXED]. With WRITES the rows' streams come of old ones, and are stored."""
    K: tl.constexpr = M * D
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    outs = tl.arange(0, MIXED)
    read_rows = tl.minimum(rows, num_rows - 1).to(tl.int64)
    part = tl.program_id(1)
    sums = tl.zeros((MIXED, BLOCK_ROWS), tl.float32)
    for start in range(0, PART, STEP):
        columns = part * PART + start + tl.arange(0, STEP)
        inside = columns < K
        f = tl.load(
            fn + outs[:, None] * K + columns[None, :], mask=(outs < COUNT)[:, None] & inside[None, :], other=0.0
        )
        at = streams + read_rows[:, None] * K + columns[None, :]
        if WRITES:
            read = tl.minimum(columns, K - 1)
            new = _new(out, old, post, comb, read_rows[:, None], read // D, read % D, inside[None, :], M, D)
            x = to_bf16(new)
            tl.store(at, x, mask=(rows < num_rows)[:, None] & inside[None, :])
            x = x.T
        else:
            x = tl.load(at, mask=inside[None, :], other=0.0).T
        high = to_bf16(f)
        rest = f - high.to(tl.float32)
        middle = to_bf16(rest)
        low = to_bf16(rest - middle.to(tl.float32))
        sums = dot(high, x, dot(middle, x, dot(low, x, sums)))
    at = (rows.to(tl.int64) * PARTS + part)[None, :] * MIXED + outs[:, None]
    tl.store(parts + at, sums, mask=(rows < num_rows)[None, :])


@kernel
def _read(
    streams,
    parts,
    base,
    norm,
    x,
    post,
    comb,
    hc_eps,
    norm_eps,
    M: tl.constexpr,
    D: tl.constexpr,
    ITERS: tl.constexpr,
    PARTS: tl.constexpr,
    MIXED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """Grid (2, N), or (1, N) for the head.

    The first program of a row makes x, the second post and comb, which are needed later.
    """
    row = tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    squares = tl.zeros((), tl.float32)
    for i in tl.static_range(M):
        stream = tl.load(streams + (row * M + i) * D + columns, mask=columns < D, other=0.0).to(tl.float32)
        squares += tl.sum(stream * stream)
    scale = inverse_rms(squares, M * D, norm_eps)
    row_parts = parts + row * PARTS * MIXED
    one = tl.arange(0, M)
    if tl.program_id(0) == 0:
        pre = tl.sigmoid(_added(row_parts, one, PARTS, MIXED, BLOCK_PARTS) * scale + tl.load(base + one)) + hc_eps
        y = tl.zeros((BLOCK_D,), tl.float32)
        for i in tl.static_range(M):
            stream = tl.load(streams + (row * M + i) * D + columns, mask=columns < D, other=0.0).to(tl.float32)
            y += tl.sum(tl.where(one == i, pre, 0.0)) * stream
        y = round_bf16(y)
        y = y * inverse_rms(tl.sum(y * y), D, norm_eps)
        weight = tl.load(norm + columns, mask=columns < D, other=0.0)
        tl.store(x + row * D + columns, to_bf16(y * weight), mask=columns < D)
    elif comb is not None:
        raw = _added(row_parts, M + one, PARTS, MIXED, BLOCK_PARTS) * scale + tl.load(base + M + one)
        tl.store(post + row * M + one, tl.sigmoid(raw) * 2.0)
        pair = tl.arange(0, M * M)
        raw = _added(row_parts, 2 * M + pair, PARTS, MIXED, BLOCK_PARTS) * scale + tl.load(base + 2 * M + pair)
        mixing = _sinkhorn(raw.reshape(M, M), ITERS, hc_eps)
        tl.store(comb + row * M * M + pair, mixing.reshape(M * M))


@kernel
def _added(row_parts, outs, PARTS: tl.constexpr, MIXED: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """The parts of some outputs of a row, added in a tree of a fixed shape."""
    part = tl.arange(0, BLOCK_PARTS)
    return tl.sum(
        tl.load(row_parts + part[:, None] * MIXED + outs[None, :], mask=(part < PARTS)[:, None], other=0.0), 0
    )


@kernel
def _sinkhorn(raw, ITERS: tl.constexpr, eps):
    """Rows by softmax, then columns and rows in turn: [M, M], nearly doubly stochastic."""
    mixing = tl.exp(raw - tl.max(raw, 1, keep_dims=True))
    mixing = mixing / tl.sum(mixing, 1, keep_dims=True) + eps
    mixing = mixing / (tl.sum(mixing, 0, keep_dims=True) + eps)
    for _ in range(ITERS - 1):
        mixing = mixing / (tl.sum(mixing, 1, keep_dims=True) + eps)
        mixing = mixing / (tl.sum(mixing, 0, keep_dims=True) + eps)
    return mixing


@kernel
def _write(out, streams, post, comb, written, M: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (blocks of D, N): all streams of a row side by side, each read once."""
    row = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    k = tl.arange(0, M)[:, None]
    inside = columns < D
    new = _new(out, streams, post, comb, row, k, columns, inside, M, D)
    tl.store(written + (row * M + k) * D + columns, to_bf16(new), mask=inside)


@kernel
def _new(out, streams, post, comb, row, k, column, inside, M: tl.constexpr, D: tl.constexpr):
    """Columns of streams k of rows, as they become: fused multiply-adds in this order, wherever it is done."""
    new = tl.load(post + row * M + k) * tl.load(out + row * D + column, mask=inside, other=0.0).to(tl.float32)
    for j in tl.static_range(M):
        stream = tl.load(streams + (row * M + j) * D + column, mask=inside, other=0.0).to(tl.float32)
        weight, stream = tl.broadcast(tl.load(comb + (row * M + j) * M + k), stream)
        new = tl.fma(weight, stream, new)
    return new
