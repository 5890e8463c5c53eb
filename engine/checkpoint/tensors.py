"""The tensors of a model directory: which there must be, whether they are there, and their values (V4 spec 4).

`Checkpoint.open` proves from headers and file sizes alone that every tensor has its name, shape, type and bytes, so a
damaged download is refused before any weight is read. Knows the formats of files, not what a layer computes.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from holdfast.engine.checkpoint.config import CSA, ModelConfig
from holdfast.engine.checkpoint.shards import DTYPE_BYTES, StoredTensor, find_tensors, short
from holdfast.engine.errors import CheckpointError
from holdfast.kernels.quant import dequant_fp4_weight, dequant_fp8_weight

# Stored types a tensor of a kind may have, the official one first. I8 is FP4, two values a byte (spec 1.1, 4.3);
# BF16 and F32 linears are those of a dequantised checkpoint and have no scale.
STORED_DTYPES = {
    "bf16": ("BF16", "F32"),
    "f32": ("F32",),
    "fp8": ("F8_E4M3", "BF16", "F32"),
    "fp4": ("I8", "F8_E4M3", "BF16", "F32"),
    "i64": ("I64",),
}
FULL_DIGEST_BYTES = 64 << 20
SAMPLE_BYTES = 4096
SHARED_BY_MTP = ("mtp.0.embed.weight", "mtp.0.head.weight")  # copies that some conversions keep (spec 4.2)
# What transformers' save_pretrained writes instead of the official names (spec 4.4).
SAVED_NAMES = (
    (re.compile(r"^model\.embed_tokens\."), "embed."),
    (re.compile(r"^model\.hc_head\.hc_"), "hc_head_"),
    (re.compile(r"^model\."), ""),
    (re.compile(r"\.attn\.norm\.weight$"), ".attn.kv_norm.weight"),
)


@dataclass(frozen=True)
class TensorSpec:
    """What the architecture requires of one tensor: its logical shape (FP4 unpacked) and its kind in STORED_DTYPES."""

    shape: tuple[int, ...]
    kind: str


def expected_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """All tensors of a model by official name, scales left out: `stored_parts` adds them (spec 4.2)."""
    c, M = config, config.hc_mult
    head = {
        "hc_head_fn": TensorSpec((M, M * c.hidden_size), "f32"),
        "hc_head_base": TensorSpec((M,), "f32"),
        "hc_head_scale": TensorSpec((1,), "f32"),
        "norm.weight": TensorSpec((c.hidden_size,), "bf16"),
    }
    table = {name: TensorSpec((c.vocab_size, c.hidden_size), "bf16") for name in ("embed.weight", "head.weight")} | head
    for layer in range(c.num_hidden_layers):
        table |= {f"layers.{layer}.{name}": spec for name, spec in _block_tensors(c, layer)}
    if not c.has_mtp:
        return table
    table |= {f"mtp.0.{name}": spec for name, spec in _block_tensors(c, c.num_hidden_layers)}
    table |= {f"mtp.0.{name}": spec for name, spec in head.items()}
    table |= {f"mtp.0.{name}.weight": TensorSpec((c.hidden_size,), "bf16") for name in ("enorm", "hnorm")}
    return table | {f"mtp.0.{name}.weight": TensorSpec((c.hidden_size,) * 2, "fp8") for name in ("e_proj", "h_proj")}


def _block_tensors(c: ModelConfig, layer: int) -> Iterator[tuple[str, TensorSpec]]:
    """Names below `layers.N.` (or `mtp.0.`, which is layer num_hidden_layers) and their specs."""
    D, d, M, inter = c.hidden_size, c.head_dim, c.hc_mult, c.moe_intermediate_size
    mixes = (2 + M) * M
    for part in ("attn", "ffn"):
        yield f"{part}_norm.weight", TensorSpec((D,), "bf16")
        yield f"hc_{part}_fn", TensorSpec((mixes, M * D), "f32")
        yield f"hc_{part}_base", TensorSpec((mixes,), "f32")
        yield f"hc_{part}_scale", TensorSpec((3,), "f32")

    yield "attn.wq_a.weight", TensorSpec((c.q_lora_rank, D), "fp8")
    yield "attn.q_norm.weight", TensorSpec((c.q_lora_rank,), "bf16")
    yield "attn.wq_b.weight", TensorSpec((c.num_attention_heads * d, c.q_lora_rank), "fp8")
    yield "attn.wkv.weight", TensorSpec((d, D), "fp8")
    yield "attn.kv_norm.weight", TensorSpec((d,), "bf16")
    yield "attn.wo_a.weight", TensorSpec((c.o_groups * c.o_lora_rank, c.num_attention_heads * d // c.o_groups), "fp8")
    yield "attn.wo_b.weight", TensorSpec((D, c.o_groups * c.o_lora_rank), "fp8")
    yield "attn.attn_sink", TensorSpec((c.num_attention_heads,), "f32")
    if ratio := c.ratio(layer):
        yield from _compressor_tensors("attn.compressor", D, d, ratio)
    if ratio == CSA:
        yield "attn.indexer.wq_b.weight", TensorSpec((c.index_n_heads * c.index_head_dim, c.q_lora_rank), "fp8")
        yield "attn.indexer.weights_proj.weight", TensorSpec((c.index_n_heads, D), "bf16")
        yield from _compressor_tensors("attn.indexer.compressor", D, c.index_head_dim, ratio)

    yield "ffn.gate.weight", TensorSpec((c.n_routed_experts, D), "bf16")
    if c.is_hash_layer(layer):
        yield "ffn.gate.tid2eid", TensorSpec((c.vocab_size, c.num_experts_per_tok), "i64")
    else:
        yield "ffn.gate.bias", TensorSpec((c.n_routed_experts,), "f32")
    experts = [(f"ffn.experts.{i}", "fp4") for i in range(c.n_routed_experts)]
    for name, kind in [*experts, ("ffn.shared_experts", "fp8")]:
        yield f"{name}.w1.weight", TensorSpec((inter, D), kind)
        yield f"{name}.w2.weight", TensorSpec((D, inter), kind)
        yield f"{name}.w3.weight", TensorSpec((inter, D), kind)


def _compressor_tensors(prefix: str, hidden: int, dim: int, ratio: int) -> Iterator[tuple[str, TensorSpec]]:
    width = 2 * dim if ratio == CSA else dim  # CSA blocks overlap: each token carries two halves (spec 2.6)
    yield f"{prefix}.wkv.weight", TensorSpec((width, hidden), "bf16")
    yield f"{prefix}.wgate.weight", TensorSpec((width, hidden), "bf16")
    yield f"{prefix}.ape", TensorSpec((ratio, width), "f32")
    yield f"{prefix}.norm.weight", TensorSpec((dim,), "bf16")


def scale_name(name: str) -> str:
    return name.removesuffix("weight") + "scale"


def stored_parts(name: str, spec: TensorSpec, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The file entries, name -> (dtype, shape), that hold a tensor whose own entry has `dtype`."""
    if dtype == "I8":
        out, width = spec.shape
        return {name: ("I8", (out, width // 2)), scale_name(name): ("F8_E8M0", (out, width // 32))}
    if dtype == "F8_E4M3":
        out, width = spec.shape
        return {name: (dtype, spec.shape), scale_name(name): ("F8_E8M0", (-(-out // 128), -(-width // 128)))}
    return {name: (dtype, spec.shape)}


def stored_bytes(name: str, spec: TensorSpec, dtype: str) -> int:
    """Bytes of a tensor and its scale when its own entry has `dtype`."""
    parts = stored_parts(name, spec, dtype).values()
    return sum(math.prod(shape) * DTYPE_BYTES[part_dtype] for part_dtype, shape in parts)


class Checkpoint:
    """An opened model directory. `config` is what the files hold: without MTP where they have no such block."""

    def __init__(self, config: ModelConfig, stored: dict[str, StoredTensor], shards: list[Path]):
        self.config = config
        self.shards = shards
        self.stored = stored  # official name -> place, scales included, only what `config` needs
        self.specs = expected_tensors(config)
        self._files: dict[Path, Any] = {}

    @classmethod
    def open(cls, directory: Path, config: ModelConfig) -> "Checkpoint":
        """Read headers and verify; raises CheckpointError that names tensor or file, what was found and expected."""
        directory = Path(directory)
        found = find_tensors(directory)
        stored: dict[str, StoredTensor] = {}
        for entry in found:
            name = official_name(entry.key)
            if name in stored:
                raise CheckpointError(f"{name} is stored twice, in {stored[name].path.name} and {entry.path.name}")
            stored[name] = entry
        if "mtp.0.main_proj.weight" in stored and "mtp.0.e_proj.weight" not in stored:
            config = dataclasses.replace(config, is_dspark=True)
        saved_by_transformers = any(entry.key.startswith("model.") for entry in found)
        if saved_by_transformers and not any(name.startswith("mtp.") for name in stored):
            config = dataclasses.replace(config, num_nextn_predict_layers=0)
        shards = sorted({entry.path for entry in found})
        return cls(config, _verified(directory, config, stored), shards)

    def tensor(self, name: str, rows: range | None = None) -> Tensor:
        """A tensor as stored, or some rows that are read alone: FP4 packed in int8, scales as float8_e8m0fnu.

        Raises CheckpointError for NaN scales.
        """
        place = self.stored[name]
        if place.path not in self._files:
            self._files[place.path] = safe_open(place.path, framework="pt")
        tensor: Tensor
        if rows is None:
            tensor = self._files[place.path].get_tensor(place.key)
        else:
            tensor = self._files[place.path].get_slice(place.key)[rows.start : rows.stop]
        if place.dtype == "F8_E8M0" and (tensor.view(torch.uint8) == 255).any():
            raise CheckpointError(f"{name} in {place.path.name} holds NaN: the file is damaged, download it again")
        return tensor

    def weight(self, name: str, rows: range | None = None) -> Tensor:
        """A weight dequantised exactly to float32 [logical shape], or these rows of it, which are read alone.

        tid2eid comes as int64, with its ids checked. Raises CheckpointError for a value that is not finite or an expert
        that does not exist.
        """
        place = self.stored[name]
        raw = self.tensor(name, rows)
        if place.dtype == "I64":
            experts = self.config.n_routed_experts
            if raw.min() < 0 or raw.max() >= experts:
                raise CheckpointError(
                    f"{name} in {place.path.name} names experts outside 0..{experts - 1}: damaged file"
                )
            chosen = raw.sort(-1).values
            if (chosen[..., 1:] == chosen[..., :-1]).any():
                raise CheckpointError(f"{name} in {place.path.name} names an expert twice for a token: damaged file")
            return raw
        if place.dtype == "I8":
            value = dequant_fp4_weight(raw, self.tensor(scale_name(name), rows))
        elif place.dtype == "F8_E4M3":
            scale = self.tensor(scale_name(name), blocks(rows))
            value = dequant_fp8_weight(raw, scale, 0 if rows is None else rows.start % 128)
        else:
            value = raw.float()
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} in {place.path.name} holds NaN or infinity: damaged file, download it again")
        return value

    def identity(self) -> str:
        """BLAKE2b (hex) of the config and, by name, every tensor's type, shape and content.

        Up to 64 MiB all bytes count. Beyond, 4 KiB from the middle of each tensor: enough to tell two trainings
        apart, not to find a flipped bit, and seconds instead of minutes for the real models.
        """
        total = sum(place.num_bytes for place in self.stored.values())
        digest = hashlib.blake2b(json.dumps(self.config.to_dict(), sort_keys=True).encode(), digest_size=32)
        with contextlib.ExitStack() as stack:
            files = {path: stack.enter_context(path.open("rb")) for path in self.shards}
            for name, place in sorted(self.stored.items()):
                size = place.num_bytes if total < FULL_DIGEST_BYTES else min(place.num_bytes, SAMPLE_BYTES)
                files[place.path].seek(place.start + (place.num_bytes - size) // 2)
                digest.update(f"{name} {place.dtype} {place.shape} ".encode())
                digest.update(files[place.path].read(size))
        return digest.hexdigest()


def blocks(part: range | None) -> range | None:
    """The blocks of 128 that these rows touch."""
    return None if part is None else range(part.start // 128, -(-part.stop // 128))


def official_name(key: str) -> str:
    """The official name of a tensor that transformers' save_pretrained may have renamed."""
    for pattern, replacement in SAVED_NAMES:
        key = pattern.sub(replacement, key)
    return key


def _verified(directory: Path, config: ModelConfig, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The part of `stored` that `config` needs; the first missing, wrong or unknown tensor is an error."""
    needed: dict[str, StoredTensor] = {}
    for name, spec in expected_tensors(config).items():
        if name not in stored:
            raise CheckpointError(f"{directory} lacks {name}: config.json asks for it, download the model again")
        dtype = stored[name].dtype
        if dtype not in STORED_DTYPES[spec.kind]:
            allowed = " or ".join(STORED_DTYPES[spec.kind])
            raise CheckpointError(f"{name} in {stored[name].path.name} is {dtype}, expected {allowed}")
        for part, expected in stored_parts(name, spec, dtype).items():
            if part not in stored:
                raise CheckpointError(f"{directory} lacks {part}, the scale of {name}: download the model again")
            place = stored[part]
            if (place.dtype, place.shape) != expected:
                raise CheckpointError(
                    f"{part} in {place.path.name} is {place.dtype} {list(place.shape)}, "
                    f"expected {expected[0]} {list(expected[1])}: config.json and weights are not of one model"
                )
            needed[part] = place

    for name in sorted(stored.keys() - needed.keys()):
        if name.startswith("mtp.") and (not config.has_mtp or name in SHARED_BY_MTP):
            continue
        raise CheckpointError(
            f"{stored[name].path.name} holds {short(name)}, which this model does not have: "
            "config.json and weights are not of one model"
        )
    return needed
