"""Mixture-of-experts layers: routing, the chosen experts and the shared one."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kernels.bench.case import DECODE_ROWS, FLASH, PREFILL_ROWS, PRO, Case, Shape
from kernels.gpu.fp4 import PackedFp4
from kernels.gpu.moe import moe
from kernels.gpu.weights import Fp8Weight
from kernels.moe import MoEWeights


def cases() -> Iterator[Case]:
    for shape in (FLASH, PRO):
        for rows in DECODE_ROWS + PREFILL_ROWS:
            yield _case(shape, rows)


def _case(shape: Shape, rows: int) -> Case:
    width, inner, k = shape.hidden_size, shape.moe_intermediate_size, shape.num_experts_per_tok
    touched = shape.n_routed_experts * (1 - (1 - k / shape.n_routed_experts) ** rows)  # on average, of uniform choices
    weights = 3 * width * inner
    num_bytes = int(touched * weights * 17 / 32 + weights + 2 * shape.n_routed_experts * width + 4 * rows * width)
    num_ops = 2 * rows * (weights * (k + 1) + shape.n_routed_experts * width)

    def build(device: torch.device) -> Callable[[], Tensor]:
        w = _weights(shape, device)
        x = torch.empty(rows, width, dtype=torch.bfloat16, device=device)
        ids = torch.empty(rows, dtype=torch.int32, device=device)
        return lambda: moe(x, ids, w)

    return Case("moe", shape, rows, 0, num_bytes, num_ops, build)


def _weights(shape: Shape, device: torch.device) -> MoEWeights:
    width, inner, experts, k = (
        shape.hidden_size,
        shape.moe_intermediate_size,
        shape.n_routed_experts,
        shape.num_experts_per_tok,
    )

    def fp4(out: int, columns: int) -> PackedFp4:
        tiles = (experts, out // 64, columns // 128, 64)
        return PackedFp4(
            torch.empty(*tiles, 64, dtype=torch.uint8, device=device),
            torch.empty(tiles, dtype=torch.int32, device=device),
        )

    def fp8(out: int, columns: int) -> Fp8Weight:
        return Fp8Weight(
            torch.empty(out, columns, dtype=torch.float8_e4m3fn, device=device),
            torch.empty(out, columns // 128, dtype=torch.uint8, device=device),
        )

    return MoEWeights(
        torch.empty(experts, width, dtype=torch.bfloat16, device=device),
        torch.empty(experts, device=device),
        torch.empty(0, k, dtype=torch.int32, device=device),
        fp4(2 * inner, width),
        fp4(width, inner),
        fp8(2 * inner, width),
        fp8(width, inner),
        k,
        shape.routed_scaling_factor,
        shape.swiglu_limit,
    )
