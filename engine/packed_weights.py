"""Weights as Triton kernels take them: on the device, packed and oriented [out, in] as in the checkpoint."""

import torch
from torch import Tensor

from holdfast.engine.checkpoint.tensors import Checkpoint, blocks, scale_name
from holdfast.engine.columns import Parallel
from holdfast.engine.errors import CheckpointError
from holdfast.engine.weights import Part, Weights, as_parts
from holdfast.kernels.gpu.moe import pack_experts
from holdfast.kernels.gpu.weights import Fp4Weight, Fp8Weight, fp8_weight

BLOCK = 128  # of FP8 scales
FP8, FP4, BF16 = "F8_E4M3", "I8", "BF16"


class PackedWeights(Weights):
    """As `Weights`: FP8 linears are `Fp8Weight`, bf16 ones tensors, routed experts what `pack_experts` makes.

    Raises CheckpointError for a weight that is not stored in its official format.
    """

    def __init__(self, checkpoint: Checkpoint, parallel: Parallel, device: torch.device, prefix: str = ""):
        super().__init__(checkpoint, parallel, prefix)
        self._device = device

    def inside(self, prefix: str) -> "PackedWeights":
        return PackedWeights(self._checkpoint, self.parallel, self._device, self._prefix + prefix)

    def value(self, name: str, rows: range | None = None) -> Tensor:
        return super().value(name, rows).to(self._device)

    def table(self, name: str) -> Tensor:
        return self._tensor(Part(name), BF16)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.to(self._device).contiguous()

    def linear(self, *parts: Part | str) -> Fp8Weight | Tensor:
        asked = as_parts(parts)
        if self._dtype(asked[0]) == BF16:
            return torch.cat([self._tensor(part, BF16) for part in asked])
        data, scales, outs = zip(*map(self._fp8, asked))
        return Fp8Weight(torch.cat(data), torch.cat(scales), sum(outs))

    def grouped_linear(self, part: Part, groups: int) -> Fp8Weight:
        data, scale, outs = self._fp8(part)
        return Fp8Weight(data.unflatten(0, (groups, -1)), scale.unflatten(0, (groups, -1)), outs)

    def experts(self, count: int, inner: range, width: range) -> tuple[object, object]:
        return pack_experts(*(self._fp4(count, *part) for part in (("w1", inner), ("w3", inner), ("w2", width))))

    def _fp4(self, count: int, name: str, rows: range) -> Fp4Weight:
        parts = [Part(f"experts.{e}.{name}.weight", rows) for e in range(count)]
        data = torch.stack([self._tensor(part, FP4).view(torch.uint8) for part in parts])
        scales = [self._tensor(Part(scale_name(part.name), rows), "F8_E8M0").view(torch.uint8) for part in parts]
        return Fp4Weight(data, torch.stack(scales))

    def _fp8(self, part: Part) -> Fp8Weight:
        rows = part.rows
        scale = self._tensor(Part(scale_name(part.name), blocks(rows)), "F8_E8M0")
        weight = fp8_weight(self._tensor(part, FP8), scale, rows.start % BLOCK if rows else 0)
        return weight._replace(outs=self._checkpoint.stored[self._prefix + part.name].shape[0])

    def _tensor(self, part: Part, dtype: str) -> Tensor:
        if self._dtype(part) != dtype:
            raise CheckpointError(
                f"{self._prefix}{part.name} is stored as {self._dtype(part)}, a GPU needs {dtype}:"
                f" use device cpu, or the"
                " checkpoint as it was published"
            )
        return self._checkpoint.tensor(self._prefix + part.name, part.rows).to(self._device)

    def _dtype(self, part: Part) -> str:
        return self._checkpoint.stored[self._prefix + part.name].dtype
