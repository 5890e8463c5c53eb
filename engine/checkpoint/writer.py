"""Writes model directories in the official format, and makes random weights for tests and benches.

The reverse of `Checkpoint`: what `weight()` reads back is `as_stored` of what was given here.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.checkpoint.shards import INDEX_NAME
from holdfast.engine.checkpoint.tensors import STORED_DTYPES, TensorSpec, expected_tensors, scale_name, stored_bytes
from holdfast.kernels.quant import dequant_fp4_weight, dequant_fp8_weight, pack_fp4_weight, pack_fp8_weight

MAX_SHARD_BYTES = 2 << 30  # two copies of a shard are in memory while it is written
TORCH_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}


def write_checkpoint(
    directory: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dequantised: bool = False,
    extra_config: dict[str, Any] | None = None,
) -> None:
    """Write config.json, generation_config.json, shards and index.

    `weights` holds exactly the tensors of `expected_tensors(config)`, float32 in logical shape (tid2eid int64). With
    `dequantised` all is stored as float32 without scales, as transformers loads it; the values then are the given
    ones, not rounded. `extra_config` is added to config.json. Files are replaced one by one, the index last: a crash
    leaves an old index that does not fit, never a wrong model.
    """
    specs = expected_tensors(config)
    assert weights.keys() == specs.keys(), sorted(weights.keys() ^ specs.keys())[:5]
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)

    shards = _split(specs, max_shard_bytes, dequantised)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, names in enumerate(shards, 1):
        shard = f"model-{number:05}-of-{len(shards):05}.safetensors"
        parts: dict[str, Tensor] = {}
        for name in names:
            assert weights[name].shape == specs[name].shape, (name, weights[name].shape, specs[name].shape)
            assert torch.isfinite(weights[name]).all(), name
            parts |= _packed(name, specs[name], weights[name], dequantised)
        weight_map |= dict.fromkeys(parts, shard)
        total_bytes += sum(part.nbytes for part in parts.values())
        _replace(directory / shard, save(parts, metadata={"format": "pt"}))

    fields = config.to_dict()
    if dequantised:
        del fields["quantization_config"], fields["expert_dtype"]
        fields["torch_dtype"] = "float32"
    generation: dict[str, Any] = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    generation |= {"do_sample": True, "temperature": 1.0, "top_p": 1.0}
    _write_json(directory / "config.json", fields | (extra_config or {}))
    _write_json(directory / "generation_config.json", generation)
    _write_json(directory / INDEX_NAME, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def as_stored(spec: TensorSpec, weight: Tensor) -> Tensor:
    """The value of a weight after its trip through the official format of its kind."""
    if spec.kind == "fp8":
        return dequant_fp8_weight(*pack_fp8_weight(weight))
    if spec.kind == "fp4":
        return dequant_fp4_weight(*pack_fp4_weight(weight))
    return weight.bfloat16().float() if spec.kind == "bf16" else weight


def random_weights(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Random weights by official name, scaled so that activations stay near one and every parameter matters.

    float32, tid2eid int64 with distinct experts per token. Not rounded: `write_checkpoint` does that.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, spec in expected_tensors(config).items():
        if spec.kind == "i64":
            scores = torch.rand(config.vocab_size, config.n_routed_experts, generator=generator)
            weights[name] = scores.topk(config.num_experts_per_tok).indices
            continue
        mean, std = _distribution(name, spec)
        weights[name] = mean + std * torch.randn(spec.shape, generator=generator)
    return weights


def _distribution(name: str, spec: TensorSpec) -> tuple[float, float]:
    """Mean and standard deviation of a random tensor."""
    if "norm" in name or name.endswith("_scale"):
        return 1.0, 0.2
    if name == "embed.weight":
        return 0.0, 1.0
    if len(spec.shape) == 1 or name.endswith(".ape"):  # sinks, gate.bias, mHC bases
        return 0.0, 0.5
    gain = 2.0 if name == "head.weight" else 1.0
    return 0.0, gain * spec.shape[1] ** -0.5


def _split(specs: dict[str, TensorSpec], max_bytes: int, dequantised: bool) -> list[list[str]]:
    """Tensor names by shard, in order. A shard has at least one tensor, and a scale lies beside its weight."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, spec in specs.items():
        size = stored_bytes(name, spec, _dtype(spec, dequantised))
        if shards[-1] and used + size > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _dtype(spec: TensorSpec, dequantised: bool) -> str:
    return "F32" if dequantised and spec.kind != "i64" else STORED_DTYPES[spec.kind][0]


def _packed(name: str, spec: TensorSpec, weight: Tensor, dequantised: bool) -> dict[str, Tensor]:
    """The file entries of one tensor."""
    dtype = _dtype(spec, dequantised)
    if dtype in ("I8", "F8_E4M3"):
        packed, scale = pack_fp4_weight(weight) if dtype == "I8" else pack_fp8_weight(weight)
        return {name: packed, scale_name(name): scale}
    return {name: weight.to(TORCH_DTYPES[dtype]).contiguous()}


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    _replace(path, (json.dumps(fields, indent=2) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    """Write a new file beside `path`, bring it to disk, and put it in path's place."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    _fsync(new)
    new.replace(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
