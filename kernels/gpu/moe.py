"""Routing and experts of a mixture-of-experts layer (twin: `kernels/moe.py`).

Five launches for few rows, seven for many.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.kernels.gpu.experts import down, gate_up, tile_tokens
from holdfast.kernels.gpu.fp4 import PackedFp4, pack
from holdfast.kernels.gpu.gemm import linear_bf16
from holdfast.kernels.gpu.route import Plan, plan
from holdfast.kernels.gpu.weights import Fp4Weight


class PackedExperts(NamedTuple):
    """`MoEWeights.w13` and `w2` as the kernels read them."""

    w13: PackedFp4  # by 32 rows: gate, then up
    w2: PackedFp4


def pack_experts(w1: Fp4Weight, w3: Fp4Weight, w2: Fp4Weight) -> PackedExperts:
    """Weights of the experts here, as in the checkpoint: w1, w3 [E, inner, D], w2 [E, D, inner]."""
    inner = w1.data.shape[1]

    def in_turns(gate: Tensor, up: Tensor) -> Tensor:
        """By 8 rows, which puts gate and up of a column into one thread's rows."""
        return torch.stack((gate.unflatten(1, (inner // 8, 8)), up.unflatten(1, (inner // 8, 8))), 2).flatten(1, 3)

    return PackedExperts(pack(Fp4Weight(in_turns(w1.data, w3.data), in_turns(w1.scale, w3.scale))), pack(w2))


def moe(x: Tensor, ids: Tensor, w: Any) -> Tensor:
    """Chosen experts and the shared one: x bf16 [N, D], token ids int32 [N] -> bf16 [N, D].

    w is a MoEWeights with gate bf16 [E, D], bias float32 [E] or [0], tid2eid int32 [V, k] or [0, k], w13 and w2 of
    `pack_experts`, shared_w13 and shared_w2 Fp8Weight.
    """
    if not len(x):
        return torch.empty_like(x)
    return moe_columns(*moe_hidden(x, ids, w), w)


def moe_hidden(x: Tensor, ids: Tensor, w: Any) -> tuple[Tensor, Plan]:
    """Hidden values bf16 [N * k + N, inner]: pairs in the plan's order, then the shared expert's rows."""
    tokens = tile_tokens(len(x) * w.k, len(w.gate))
    scores = linear_bf16(x, w.gate, torch.float32)
    order, rounded = plan(x, scores, ids, w, tokens, w.w13.codes.shape[1] // 4)
    return gate_up(rounded, order, w.w13, w.shared_w13, w.limit, tokens), order


def moe_columns(hidden: Tensor, chosen: Plan, w: Any) -> Tensor:
    """The second products, summed over a row's experts in ascending order and the shared one: bf16 [N, D]."""
    num_pairs = chosen.order.numel()
    tokens = tile_tokens(num_pairs, len(w.gate))
    return down(hidden[:num_pairs], hidden[num_pairs:], chosen, w.w2, w.shared_w2, tokens)
