"""The products before attention (queries, window rows, index queries) and after it (V4 spec 2.4, 2.7)."""

from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.kernels.norm import rms_norm
from holdfast.kernels.quant import fake_fp4, round_kv_rows
from holdfast.kernels.rope import rope_table as rope_table_of
from holdfast.kernels.rope import rotate_
from holdfast.kernels.rounding import Rounding
from holdfast.kernels.rows import Indices


class ProjectWeights(NamedTuple):
    w_in: Tensor  # [D, q_lora_rank + head_dim]: wq_a, then wkv
    q_norm: Tensor  # [q_lora_rank]
    kv_norm: Tensor  # [head_dim]
    wq_b: Tensor  # [q_lora_rank, num_heads * head_dim + num_index_heads * index_head_dim]
    hadamard: Tensor  # [index_head_dim, index_head_dim], or [0, 0] without an indexer
    num_heads: int
    num_index_heads: int
    rounds_rows: bool
    eps: float


class OutputWeights(NamedTuple):
    wo_a: Tensor  # [groups, num_heads * head_dim / groups, o_lora_rank]; of a rank some groups, or outputs of one
    wo_b: Tensor  # [all groups * o_lora_rank, D]; of a rank its share of the D


def rope_table(positions: Indices, freqs: Tensor, *, num: Rounding) -> Tensor:
    """positions [N], freqs float64 [P] -> e^(i * angle), complex64 [N, P]."""
    return rope_table_of(torch.from_numpy(positions), freqs)


def project(x: Tensor, freqs_cis: Tensor, w: ProjectWeights, *, num: Rounding) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, D] -> queries [N, H, head_dim], window rows [N, head_dim], index queries [N, HI, index_head_dim]."""
    rank, dim = len(w.q_norm), len(w.kv_norm)
    qr, kv = num.bf16(num.act(x) @ w.w_in).split([rank, dim], 1)
    kv = num.bf16(rotate_(num.bf16(rms_norm(kv, w.kv_norm, w.eps)), freqs_cis))
    if w.rounds_rows:
        kv = round_kv_rows(kv, 2 * freqs_cis.shape[1])
    projected = num.bf16(num.act(num.bf16(rms_norm(qr, w.q_norm, w.eps))) @ w.wq_b)
    q = num.head_norm(projected[:, : w.num_heads * dim].unflatten(1, (w.num_heads, dim)), w.eps)
    q = num.bf16(rotate_(q, freqs_cis.unsqueeze(1)))
    index_q = projected[:, w.num_heads * dim :].reshape(len(x), w.num_index_heads, len(w.hadamard))
    if w.num_index_heads:
        index_q = num.bf16(num.bf16(rotate_(index_q, freqs_cis.unsqueeze(1))) @ w.hadamard)
        index_q = fake_fp4(index_q) if num.official else index_q
    return q, kv, index_q


def output(o: Tensor, w: OutputWeights, *, num: Rounding) -> Tensor:
    """Attention's o [N, H, head_dim] -> [N, D]."""
    return output_columns(output_low(o, w, num=num), w, num=num)


def output_low(o: Tensor, w: OutputWeights, *, num: Rounding) -> Tensor:
    """o -> [N, groups * o_lora_rank]."""
    low = torch.einsum("ngk,gkr->ngr", o.reshape(len(o), *w.wo_a.shape[:2]), w.wo_a)
    return num.bf16(low.flatten(1))


def output_columns(low: Tensor, w: OutputWeights, *, num: Rounding) -> Tensor:
    """What `output_low` gives for all groups -> [N, D]."""
    return num.bf16(num.act(low) @ w.wo_b)
