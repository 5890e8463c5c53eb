"""The products around attention (V4 spec 2.4, 2.7). Twins: `kernels/project.py`."""

from typing import Any

import torch
from torch import Tensor

from holdfast.kernels.gpu.gemm import grouped_fp8, linear_fp8, linear_quantised, quantised_like, scale_row
from holdfast.kernels.gpu.jit import dot, kernel, launch, next_power_of_two, tl
from holdfast.kernels.gpu.norm import inverse_rms
from holdfast.kernels.gpu.quant import fake_e2m1, fake_e4m3, quantise_e4m3, round_bf16, to_bf16
from holdfast.kernels.gpu.rope import rotate

HEADS = 4  # of a program
INDEX_HEADS = 16  # the least a tensor core takes


def rope_table(positions: Tensor, freqs: Tensor) -> Tensor:
    """positions int64 [N], freqs float64 [P] -> (cos, sin) float32 [N, P, 2]; angles are float64."""
    angles = positions.double()[:, None] * freqs
    return torch.stack((angles.cos(), angles.sin()), 2).float()


def project(x: Tensor, freqs_cis: Tensor, w: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x bf16 [N, D] -> q bf16 [N, H, head_dim], kv bf16 [N, head_dim], index_q bf16 [N, HI, index_head_dim].

    w.w_in and w.wq_b are Fp8Weight [out, in]; of w.hadamard only the size is read.
    """
    num_rows, rank, dim, rope = len(x), len(w.q_norm), len(w.kv_norm), 2 * freqs_cis.shape[1]
    joint = linear_fp8(x, w.w_in)
    codes, scale = quantised_like(num_rows, rank, x.device)
    kv = torch.empty(num_rows, dim, dtype=torch.bfloat16, device=x.device)
    launch(
        _norms,
        (2, num_rows),
        joint,
        freqs_cis,
        w.q_norm,
        w.kv_norm,
        codes,
        scale,
        kv,
        num_rows,
        w.eps,
        RANK=rank,
        DIM=dim,
        ROPE=rope,
        ROUNDS=w.rounds_rows,
        RANK_BLOCKS=next_power_of_two(rank // 128),
        BLOCK=next_power_of_two(dim),
    )
    queries = linear_quantised(codes, scale, w.wq_b)
    index_heads, index_dim = w.num_index_heads, len(w.hadamard)
    q = torch.empty(num_rows, w.num_heads, dim, dtype=torch.bfloat16, device=x.device)
    index_q = torch.empty(num_rows, index_heads, index_dim, dtype=torch.bfloat16, device=x.device)
    launch(
        _queries,
        (-(-w.num_heads // HEADS) + -(-index_heads // INDEX_HEADS), num_rows),
        queries,
        freqs_cis,
        q,
        index_q,
        w.eps,
        HEADS=w.num_heads,
        DIM=dim,
        ROPE=rope,
        INDEX_HEADS=index_heads,
        INDEX_DIM=index_dim,
        BLOCK_HEADS=HEADS,
        BLOCK=next_power_of_two(dim),
        BLOCK_INDEX=INDEX_HEADS,
    )
    return q, kv, index_q


def output(o: Tensor, w: Any) -> Tensor:
    """Attention's o bf16 [N, H, head_dim] -> bf16 [N, D]."""
    return output_columns(output_low(o, w), w)


def output_low(o: Tensor, w: Any) -> Tensor:
    """o -> bf16 [N, groups * o_lora_rank].

    w.wo_a is Fp8Weight [groups, o_lora_rank, in]; o is not rounded to FP8 for it.
    """
    return grouped_fp8(o, w.wo_a)


def output_columns(low: Tensor, w: Any) -> Tensor:
    """What `output_low` gives for all groups -> bf16 [N, D]. w.wo_b is Fp8Weight [D, all groups * o_lora_rank]."""
    return linear_fp8(low, w.wo_b)


@kernel
def _norms(
    joint,
    freqs_cis,
    q_norm,
    kv_norm,
    codes,
    scale,
    kv,
    num_rows,
    eps,
    RANK: tl.constexpr,
    DIM: tl.constexpr,
    ROPE: tl.constexpr,
    ROUNDS: tl.constexpr,
    RANK_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (2, N), of joint [N, RANK + DIM].

    The first program of a row makes the input of the queries' product, the second its window row.
    """
    row = tl.program_id(1).to(tl.int64)
    source = joint + row * (RANK + DIM)
    if tl.program_id(0) == 0:
        _low_rank(source, q_norm, codes + row * RANK, scale + row, num_rows, eps, RANK, RANK_BLOCKS)
    else:
        _window_row(source + RANK, freqs_cis + row * ROPE, kv_norm, kv + row * DIM, eps, DIM, ROPE, ROUNDS, BLOCK)


@kernel
def _low_rank(source, norm, codes, scale, num_rows, eps, RANK: tl.constexpr, RANK_BLOCKS: tl.constexpr):
    """Normalise and round to FP8."""
    block = tl.arange(0, RANK_BLOCKS)[:, None]
    columns = block * 128 + tl.arange(0, 128)[None, :]
    inside = columns < RANK
    x = tl.load(source + columns, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(norm + columns, mask=inside, other=0.0)
    x = round_bf16(x * inverse_rms(tl.sum(x * x), RANK, eps) * weight)
    rounded, s = quantise_e4m3(x, 1)
    tl.store(codes + columns, rounded, mask=inside)
    tl.store(scale_row(scale, block, num_rows), s, mask=block < RANK // 128)


@kernel
def _window_row(
    source, freqs_cis, norm, kv, eps, DIM: tl.constexpr, ROPE: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr
):
    """Normalise, rotate, and round as rows are stored."""
    columns = tl.arange(0, BLOCK)[None, :]
    inside = columns < DIM
    x = tl.load(source + columns, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(norm + columns, mask=inside, other=0.0)
    x = round_bf16(x * inverse_rms(tl.sum(x * x), DIM, eps) * weight)
    x = round_bf16(rotate(x, freqs_cis, DIM, ROPE))
    if ROUNDS:
        rounded = fake_e4m3(x.reshape(BLOCK // 64, 64), 1).reshape(1, BLOCK)
        x = tl.where(columns < DIM - ROPE, rounded, x)
    tl.store(kv + columns, to_bf16(x), mask=inside)


@kernel
def _queries(
    queries,
    freqs_cis,
    q,
    index_q,
    eps,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROPE: tl.constexpr,
    INDEX_HEADS: tl.constexpr,
    INDEX_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_INDEX: tl.constexpr,
):
    """Grid (tiles of heads, then of index heads; N), of queries [N, HEADS * DIM + INDEX_HEADS * INDEX_DIM]."""
    tile, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    source, row_freqs_cis = queries + row * (HEADS * DIM + INDEX_HEADS * INDEX_DIM), freqs_cis + row * ROPE
    tiles: tl.constexpr = (HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    if tile < tiles:
        first = tile * BLOCK_HEADS
        _turn_heads(source, row_freqs_cis, q + row * HEADS * DIM, first, eps, HEADS, DIM, ROPE, BLOCK_HEADS, BLOCK)
    elif INDEX_HEADS > 0:
        first = (tile - tiles) * BLOCK_INDEX
        target = index_q + row * INDEX_HEADS * INDEX_DIM
        _turn_index_heads(source + HEADS * DIM, row_freqs_cis, target, first, INDEX_HEADS, INDEX_DIM, ROPE, BLOCK_INDEX)


@kernel
def _turn_heads(
    source,
    freqs_cis,
    target,
    first,
    eps,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalise heads and rotate them."""
    head = (first + tl.arange(0, BLOCK_HEADS))[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (head < HEADS) & (columns < DIM)
    x = tl.load(source + head * DIM + columns, mask=inside, other=0.0).to(tl.float32)
    x = rotate(_head_norm(x, DIM, eps), freqs_cis, DIM, ROPE)
    tl.store(target + head * DIM + columns, to_bf16(x), mask=inside)


@kernel
def _turn_index_heads(
    source,
    freqs_cis,
    target,
    first,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    """Rotate, spread by the Hadamard matrix, and round to FP4."""
    head = (first + tl.arange(0, BLOCK_HEADS))[:, None]
    columns = tl.arange(0, DIM)[None, :]
    x = tl.load(source + head * DIM + columns, mask=head < HEADS, other=0.0).to(tl.float32)
    x = round_bf16(hadamard(to_bf16(rotate(x, freqs_cis, DIM, ROPE))))
    x = fake_e2m1(x.reshape(BLOCK_HEADS, DIM // 32, 32), 2).reshape(BLOCK_HEADS, DIM)
    tl.store(target + head * DIM + columns, to_bf16(x), mask=head < HEADS)


@kernel
def _head_norm(x, DIM: tl.constexpr, eps):
    """RMS norm of each row of x, in bf16 throughout: the reference does it so (spec 5.3)."""
    mean = round_bf16(tl.sum(round_bf16(x * x), 1, keep_dims=True) / DIM)
    return round_bf16(x * round_bf16(tl.rsqrt(round_bf16(mean + eps))))


@kernel
def hadamard(x):
    """x bf16 [R, n] times the orthonormal Walsh-Hadamard matrix in Sylvester order, float32.

    Its entry (i, j) is negative where i and j have an odd number of bits in common.
    """
    n: tl.constexpr = x.shape[1]
    common = tl.arange(0, n)[:, None] & tl.arange(0, n)[None, :]
    common ^= common >> 4
    common ^= common >> 2
    common ^= common >> 1
    signs = (1 - 2 * (common & 1)).to(tl.float32)
    return dot(x, to_bf16(signs)) * n**-0.5
