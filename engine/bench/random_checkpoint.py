"""A checkpoint of random weights in the shapes and formats of a real model, without its files.

Tensors are made on a device when they are asked for. Values have the spread of trained weights, so that activations
stay finite through all layers: a linear of K inputs has the standard deviation 1 / sqrt(K). The same name gives the
same values in every process.
"""

import dataclasses
import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor

from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.checkpoint.shards import StoredTensor
from holdfast.engine.checkpoint.tensors import STORED_DTYPES, Checkpoint, expected_tensors, stored_bytes, stored_parts
from holdfast.kernels.quant import FP4_VALUES

# The published models, by the names of their config.json (V4 spec 1.1).
MODELS = {
    "flash": ModelConfig(
        vocab_size=129_280,
        hidden_size=4096,
        num_hidden_layers=43,
        num_attention_heads=64,
        head_dim=512,
        q_lora_rank=1024,
        o_groups=8,
        o_lora_rank=1024,
        index_topk=512,
        n_routed_experts=256,
        num_experts_per_tok=6,
        moe_intermediate_size=2048,
        routed_scaling_factor=1.5,
        compress_ratios=(0, 0, *(4, 128) * 20, 4, 0),
    ),
    "pro": ModelConfig(
        vocab_size=129_280,
        hidden_size=7168,
        num_hidden_layers=61,
        num_attention_heads=128,
        head_dim=512,
        q_lora_rank=1536,
        o_groups=16,
        o_lora_rank=1024,
        index_topk=1024,
        n_routed_experts=384,
        num_experts_per_tok=6,
        moe_intermediate_size=3072,
        routed_scaling_factor=2.5,
        compress_ratios=(128, 128, *(4, 128) * 29, 4, 0),
    ),
}
FP4_SPREAD = math.sqrt(sum(v * v for v in FP4_VALUES) / len(FP4_VALUES))  # of random codes


class RandomCheckpoint(Checkpoint):
    """Stands in for an opened model directory; without an MTP block."""

    def __init__(self, config: ModelConfig, device: torch.device):
        config = dataclasses.replace(config, num_nextn_predict_layers=0)
        stored = {}
        for name, spec in expected_tensors(config).items():
            for part, (dtype, shape) in stored_parts(name, spec, STORED_DTYPES[spec.kind][0]).items():
                stored[part] = StoredTensor(Path("random"), part, dtype, shape, 0, 0)
        super().__init__(config, stored, [])
        self.device = device

    @property
    def num_bytes(self) -> int:
        """What the weights take in the official format."""
        return sum(stored_bytes(name, spec, STORED_DTYPES[spec.kind][0]) for name, spec in self.specs.items())

    def identity(self) -> str:
        return hashlib.blake2b(f"random {self.config}".encode(), digest_size=32).hexdigest()

    def tensor(self, name: str, rows: range | None = None, columns: range | None = None) -> Tensor:
        place = self.stored[name]
        tensor = self._made(name, place.dtype, place.shape)
        parts = [slice(r.start, r.stop) if r else slice(None) for r in (rows, columns)]
        return tensor[tuple(parts[: tensor.ndim])]

    def _made(self, name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")
        generator = torch.Generator(self.device).manual_seed(seed)

        def randint(high: int, kind: torch.dtype) -> Tensor:
            return torch.randint(high, shape, generator=generator, device=self.device, dtype=kind)

        if dtype == "I64":  # the experts of a token are distinct
            first = torch.randint(2**31, (shape[0], 1), generator=generator, device=self.device)
            return (first + torch.arange(shape[1], device=self.device)) % self.config.n_routed_experts
        if dtype == "I8":
            return randint(256, torch.uint8).view(torch.int8)
        if dtype == "F8_E8M0":
            is_fp4 = self.stored[name.removesuffix("scale") + "weight"].dtype == "I8"
            width = shape[1] * (32 if is_fp4 else 128)
            spread = FP4_SPREAD if is_fp4 else 1.0
            exponent = round(math.log2(1 / (spread * math.sqrt(width))))
            return torch.full(shape, exponent + 127, dtype=torch.uint8, device=self.device).view(torch.float8_e8m0fnu)
        values = torch.randn(shape, generator=generator, device=self.device)
        if dtype == "F8_E4M3":
            return values.to(torch.float8_e4m3fn)
        if name.endswith("norm.weight"):
            values = 1 + values / 16
        elif len(shape) == 2 and not name.endswith("ape"):
            values = values / math.sqrt(shape[1])
        return values.bfloat16() if dtype == "BF16" else values
