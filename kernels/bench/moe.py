"""Cases of a mixture-of-experts layer: routing, 6 routed experts a row and the shared one."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from holdfast.kernels.bench.case import DECODE_ROWS, FLASH, PREFILL_ROWS, PRO, Call, Case, Shape
from holdfast.kernels.bench.inputs import fp8, fp8_values, random, scale_byte
from holdfast.kernels.gpu.fp4 import PackedFp4
from holdfast.kernels.gpu.moe import PackedExperts, moe, pack_experts
from holdfast.kernels.gpu.weights import Fp4Weight, Fp8Weight
from holdfast.kernels.moe import MoEWeights
from holdfast.kernels.moe import moe as twin
from holdfast.kernels.quant import dequant_fp4_weight
from holdfast.kernels.rounding import Rounding

OFFICIAL = Rounding(official=True)
# of `MoEWeights`: gate, bias, table of a hash layer; both products of the shared expert; k, factor and limit
Unpacked = tuple[Tensor, Tensor, Tensor, Fp8Weight, Fp8Weight, int, float, float]
EXPERTS_OF_TWIN = 32  # dequantised ones that fit a GPU beside everything else


def cases() -> Iterator[Case]:
    for shape in (FLASH, PRO):
        for rows in (*DECODE_ROWS, *PREFILL_ROWS):
            yield _case("moe", shape, rows)
    for rows in (1, 64, 512):
        yield with_twin(replace(FLASH, n_routed_experts=EXPERTS_OF_TWIN), rows)


def with_twin(shape: Shape, rows: int) -> Case:
    """Of so few experts that they can be dequantised for the twin."""
    return replace(_case(f"moe of {shape.n_routed_experts} experts", shape, rows), twin=partial(_twin, shape, rows))


def _case(op: str, shape: Shape, rows: int) -> Case:
    experts = shape.n_routed_experts
    width, inner, k = shape.hidden_size, shape.moe_intermediate_size, shape.num_experts_per_tok
    per_expert = 3 * width * inner
    chosen = experts * (1 - (1 - k / experts) ** rows)  # that so many rows touch, of uniform choices
    num_bytes = round(chosen * per_expert * 17 / 32) + per_expert + 2 * experts * width + 4 * rows * width
    num_ops = 2 * rows * (per_expert * (k + 1) + experts * width)
    return Case(op, shape, rows, 0, num_bytes, num_ops, partial(_build, shape, rows))


def _build(shape: Shape, rows: int, device: torch.device) -> Call:
    x, ids, weights = _inputs(shape, rows, device)
    packed = _packed(shape, device) if device.type == "meta" else pack_experts(*_experts(shape, device))
    bundle = MoEWeights(*weights[:3], *packed, *weights[3:])  # type: ignore[arg-type]
    return lambda: moe(x, ids, bundle)


def _twin(shape: Shape, rows: int, device: torch.device) -> Call:
    x, _, weights = _inputs(shape, rows, device)
    w1, w3, w2 = (_values(weight) for weight in _experts(shape, device))
    gate, bias, table, shared13, shared2, k, factor, limit = weights
    shared = fp8_values(shared13), fp8_values(shared2)
    bundle = MoEWeights(gate.float().t(), bias, table.long(), torch.cat((w1, w3), 2), w2, *shared, k, factor, limit)
    numbers = np.zeros(rows, np.int64)
    return lambda: twin(x.float(), numbers, bundle, num=OFFICIAL)


def _inputs(shape: Shape, rows: int, device: torch.device) -> tuple[Tensor, Tensor, Unpacked]:
    """x, ids and the other weights, the same for our op and its twin."""
    width, inner = shape.hidden_size, shape.moe_intermediate_size
    gate = (random(device, shape.n_routed_experts, width) * width**-0.5).bfloat16()
    bias = random(device, shape.n_routed_experts) / 8
    table = torch.empty(0, shape.num_experts_per_tok, dtype=torch.int32, device=device)
    shared = fp8(device, 2 * inner, width), fp8(device, width, inner)
    x, ids = random(device, rows, width).bfloat16(), torch.zeros(rows, dtype=torch.int32, device=device)
    rest = (shape.num_experts_per_tok, shape.routed_scaling_factor, shape.swiglu_limit)
    return x, ids, (gate, bias, table, *shared, *rest)


def _experts(shape: Shape, device: torch.device) -> list[Fp4Weight]:
    """w1, w3, w2 of all experts: random codes."""
    width, inner, experts = shape.hidden_size, shape.moe_intermediate_size, shape.n_routed_experts
    made = []
    for seed, (out, k) in enumerate(((inner, width), (inner, width), (width, inner))):
        generator = torch.Generator(device).manual_seed(seed)
        codes = torch.randint(256, (experts, out, k // 2), generator=generator, device=device, dtype=torch.uint8)
        made.append(
            Fp4Weight(codes, torch.full((experts, out, k // 32), scale_byte(k) - 1, dtype=torch.uint8, device=device))
        )
    return made


def _values(weight: Fp4Weight) -> Tensor:
    """[E, out, in / 2] -> float32 [E, in, out]."""
    return dequant_fp4_weight(weight.data, weight.scale).transpose(1, 2)


def _packed(shape: Shape, device: torch.device) -> PackedExperts:
    """What `pack_experts` would give, without the values."""
    width, inner, experts = shape.hidden_size, shape.moe_intermediate_size, shape.n_routed_experts

    def tiles(out: int, k: int) -> PackedFp4:
        codes = torch.empty(experts, out // 64, k // 128, 64, 64, dtype=torch.uint8, device=device)
        return PackedFp4(codes, torch.empty(experts, out // 64, k // 128, 64, dtype=torch.int32, device=device))

    return PackedExperts(tiles(2 * inner, width), tiles(width, inner))
