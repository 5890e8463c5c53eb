"""The numbers of a model: config.json of a DeepSeek-V4 directory, read, checked and written (V4 spec 1.1).

Attributes carry the official field names. Nothing here knows tensors. `ModelConfig` itself does not check; what comes
from a file goes through `from_dict`, which refuses everything this engine would compute wrongly.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short  # a damaged value must not fill the screen
from typing import Any

from holdfast.engine.checkpoint.config_fields import FIXED, check_derived, check_fields, check_rope, check_values
from holdfast.engine.checkpoint.files import MAX_CONFIG_BYTES, read_file
from holdfast.engine.errors import CheckpointError

SWA, CSA, HCA = 0, 4, 128
LAYER_KINDS = {SWA: "sliding_attention", CSA: "compressed_sparse_attention", HCA: "heavily_compressed_attention"}

MAY_BE_ZERO = ("num_hash_layers", "num_nextn_predict_layers", "bos_token_id", "eos_token_id")
# Bounds that keep a damaged file from sizing loops over tensor names.
MOST = {"num_hidden_layers": 1024, "n_routed_experts": 4096}
ROPE_NAMES = {"rope_factor": "factor"}
ROPE_FIELDS = ("rope_factor", "beta_fast", "beta_slow", "original_max_position_embeddings")


@dataclass(frozen=True)
class ModelConfig:
    """Fields of config.json; those with a default may be missing there (the value both official models have)."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    index_topk: int
    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    routed_scaling_factor: float
    compress_ratios: tuple[int, ...]  # one per layer, then MTP; more entries are legal, fewer than layers are not
    qk_rope_head_dim: int = 64
    sliding_window: int = 128
    index_n_heads: int = 64
    index_head_dim: int = 128
    n_shared_experts: int = 1
    num_hash_layers: int = 3
    swiglu_limit: float = 10.0
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    max_position_embeddings: int = 1048576
    num_nextn_predict_layers: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 1
    rope_factor: float = 16.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_max_position_embeddings: int = 65536
    is_dspark: bool = False  # mtp.* is a DSpark drafter, which this engine skips (spec 8.3)

    @classmethod
    def from_dir(cls, directory: Path) -> "ModelConfig":
        """Read `directory/config.json`; raises CheckpointError when it is missing, damaged or of another model."""
        path = Path(directory) / "config.json"
        try:
            fields = json.loads(read_file(path, MAX_CONFIG_BYTES).decode())
        except FileNotFoundError:
            raise CheckpointError(f"{directory} has no config.json: give the directory of a model") from None
        except (ValueError, RecursionError) as e:
            raise CheckpointError(f"{path} is not JSON ({e}): download it again") from None
        return cls.from_dict(fields, str(path))

    @classmethod
    def from_dict(cls, fields: Any, source: str = "config.json") -> "ModelConfig":
        """Check `fields` (parsed config.json) and take what is known; `source` names the file in error messages."""
        _check_family(fields, source)
        check_fields(fields, {field.name for field in dataclasses.fields(cls)} - {"is_dspark", *ROPE_FIELDS}, source)
        flat = _flatten(fields, source)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            value = flat.get(field.name)
            if value is not None:
                values[field.name] = _checked(field.name, field.type, value, source)
            elif field.default is dataclasses.MISSING:
                raise CheckpointError(f"{source} has no {field.name}: take the config.json that came with the weights")
        config = cls(**values)
        _check_shapes(config, source)
        check_derived(config, fields, source)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The content of an official config.json. A DSpark drafter is not described: it would have no tensors."""
        fields = dataclasses.asdict(self)
        rope = {ROPE_NAMES.get(name, name): fields.pop(name) for name in ROPE_FIELDS}
        fields["compress_ratios"] = list(self.compress_ratios)
        fields["num_nextn_predict_layers"] = self.num_nextn_predict_layers if self.has_mtp else 0
        del fields["is_dspark"]
        return {
            "architectures": ["DeepseekV4ForCausalLM"],
            "model_type": "deepseek_v4",
            "attention_dropout": 0.0,
            "expert_dtype": "fp4",
            "initializer_range": 0.02,
            "quantization_config": {
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "scale_fmt": "ue8m0",
                "weight_block_size": [128, 128],
            },
            "torch_dtype": "bfloat16",
            "transformers_version": "4.57.1",
            "use_cache": True,
            **FIXED,
            **fields,
            "rope_scaling": {"type": "yarn", **rope},
        }

    def ratio(self, layer: int) -> int:
        """Tokens per compressed entry of a layer (0: none). The MTP block is layer `num_hidden_layers`, ratio 0."""
        return self.compress_ratios[layer] if layer < self.num_hidden_layers else SWA

    def is_hash_layer(self, layer: int) -> bool:
        """Whether the layer picks experts by token id."""
        return layer < self.num_hash_layers

    @property
    def nope_head_dim(self) -> int:
        return self.head_dim - self.qk_rope_head_dim

    @property
    def has_mtp(self) -> bool:
        """Whether `mtp.0` is a block this engine can draft with."""
        return self.num_nextn_predict_layers > 0 and not self.is_dspark


def _check_family(fields: Any, source: str) -> None:
    if not isinstance(fields, dict):
        raise CheckpointError(f"{source} holds a {type(fields).__name__}, not an object: download it again")
    family = fields.get("model_type")
    if family == "deepseek_v41":
        raise CheckpointError(
            f"{source}: model_type deepseek_v41: DeepSeek-V4.1 is another architecture, not supported: "
            "use a DeepSeek-V4 model"
        )
    if family != "deepseek_v4":
        raise CheckpointError(f"{source}: model_type is {short(family)}: only deepseek_v4 can be run")


def _flatten(fields: dict[str, Any], source: str) -> dict[str, Any]:
    """Official fields and transformers' spelling of them (layer_types, mlp_layer_types, rope_parameters), as ours."""
    yarn, main, thetas = _rope(fields, source)
    flat = {name: value for name, value in thetas.items() if value is not None}
    for name, value in fields.items():
        _set_field(flat, name, value, source)
    flat |= {name: yarn.get(ROPE_NAMES.get(name, name)) for name in ROPE_FIELDS}
    flat["is_dspark"] = any(name.startswith("dspark_") for name in fields)
    for rotary in (fields, yarn, main):
        if (factor := rotary.get("partial_rotary_factor")) is not None:
            if type(factor) not in (int, float) or type(flat.get("head_dim")) is not int:
                raise CheckpointError(
                    f"{source}: partial_rotary_factor is {short(factor)}: take the official config.json"
                )
            _set_field(flat, "qk_rope_head_dim", int(flat["head_dim"] * factor), source)
    if fields.get("layer_types") is None:
        rates = fields.get("compress_rates") or {}
        check_values(rates, {name: ratio for ratio, name in LAYER_KINDS.items()}, f"{source}: compress_rates")
    else:
        ratios = _ratios_of_types(fields, source)
        given = flat.setdefault("compress_ratios", ratios)
        if isinstance(given, list) and given[: len(ratios)] != ratios[: len(given)]:
            raise CheckpointError(
                f"{source}: compress_ratios and layer_types do not agree: take the official config.json"
            )
    if (types := fields.get("mlp_layer_types")) is not None:
        _set_field(flat, "num_hash_layers", _num_hash_layers(types, source), source)
    return flat


def _set_field(flat: dict[str, Any], name: str, value: Any, source: str) -> None:
    """Set a field, which another spelling of it must not have set otherwise."""
    if value is None:
        return
    if flat.setdefault(name, value) != value:
        raise CheckpointError(
            f"{source}: {name} is {short(value)} and {short(flat[name])} in another place: correct the file"
        )


def _rope(fields: dict[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The rope of compressed layers, that of the others, and the thetas that they give."""
    scaling, parameters = fields.get("rope_scaling"), fields.get("rope_parameters")
    if scaling is None and parameters is None and "rope_scaling" not in fields and "rope_parameters" not in fields:
        return {}, {}, {}
    if scaling is not None and parameters not in (None, scaling):
        raise CheckpointError(f"{source}: rope_scaling and rope_parameters do not agree: take the official config.json")
    rope = parameters if scaling is None else scaling
    yarn, main = rope, {}
    if isinstance(rope, dict) and "compress" in rope:
        yarn, main = rope["compress"], rope.get("main", {})
    if not isinstance(yarn, dict) or not isinstance(main, dict):
        raise CheckpointError(
            f"{source}: rope_scaling is {short(rope)}: only yarn can be run, take the official config.json"
        )
    check_rope(yarn, main, source)
    return yarn, main, {"compress_rope_theta": yarn.get("rope_theta"), "rope_theta": main.get("rope_theta")}


def _num_hash_layers(types: Any, source: str) -> int:
    if not isinstance(types, list) or any(kind not in ("hash_moe", "moe") for kind in types):
        raise CheckpointError(f"{source}: mlp_layer_types is {short(types)}: only hash_moe and moe can be run")
    count = types.count("hash_moe")
    if types[:count].count("hash_moe") != count:
        raise CheckpointError(f"{source}: mlp_layer_types has hash_moe after moe: hash layers must come first")
    return count


def _ratios_of_types(fields: dict[str, Any], source: str) -> list[Any]:
    rates = fields.get("compress_rates") or {}
    kinds = {name: rates.get(name, ratio) for ratio, name in LAYER_KINDS.items()} if isinstance(rates, dict) else {}
    types = fields["layer_types"]
    if not isinstance(types, list):
        raise CheckpointError(f"{source}: layer_types is {short(types)}, expected a list: correct the file")
    for kind in types:
        if not isinstance(kind, str) or kind not in kinds:
            raise CheckpointError(
                f"{source}: layer_types has {short(kind)}: known are {', '.join(LAYER_KINDS.values())}"
            )
    return [kinds[kind] for kind in types]


def _checked(name: str, kind: Any, value: Any, source: str) -> Any:
    """`value` as the field's type; numbers must be positive and finite."""
    if name == "is_dspark":
        return value
    if name == "compress_ratios":
        return _checked_ratios(value, source)
    allowed = (int, float) if kind is float else (int,)
    if type(value) not in allowed:
        raise CheckpointError(f"{source}: {name} is {short(value)}, expected {kind.__name__}: correct the file")
    least = 0 if name in MAY_BE_ZERO else 1
    if kind is float and not (0 < value < 1e30 and math.isfinite(value)):
        raise CheckpointError(f"{source}: {name} is {short(value)}, expected a positive number: correct the file")
    if kind is int and not least <= value <= MOST.get(name, 2**40):
        raise CheckpointError(
            f"{source}: {name} is {short(value)}, expected {least} to {MOST.get(name, 2**40)}: correct the file"
        )
    return kind(value)


def _checked_ratios(value: Any, source: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise CheckpointError(f"{source}: compress_ratios is {short(value)}, expected a list: correct the file")
    for layer, ratio in enumerate(value):
        if type(ratio) is not int or ratio not in LAYER_KINDS:
            raise CheckpointError(
                f"{source}: compress_ratios[{layer}] is {short(ratio)}: only 0 (window), 4 (CSA), 128 (HCA) can be run"
            )
    return tuple(value)


def _check_shapes(c: ModelConfig, source: str) -> None:
    """What the layers and number formats need of the sizes, each with its reason."""
    nope, heads, groups, index = c.nope_head_dim, c.num_attention_heads, c.o_groups, c.index_head_dim
    layers, ratios = c.num_hidden_layers, len(c.compress_ratios)
    rules = [
        (ratios >= layers, f"compress_ratios has {ratios} entries for {layers} layers"),
        (c.qk_rope_head_dim % 2 == 0, f"qk_rope_head_dim is {c.qk_rope_head_dim}: rotation works on pairs"),
        (nope > 0, f"head_dim {c.head_dim} is not larger than qk_rope_head_dim {c.qk_rope_head_dim}"),
        (nope % 64 == 0, f"head_dim - qk_rope_head_dim is {nope}, not a multiple of 64 (the FP8 block of KV rows)"),
        (heads % groups == 0, f"num_attention_heads {heads} is not a multiple of o_groups {groups}"),
        (index % 32 == 0, f"index_head_dim is {index}, not a multiple of 32 (the FP4 block)"),
        (index & (index - 1) == 0, f"index_head_dim is {index}, not a power of two (Hadamard rotation)"),
        (index >= c.qk_rope_head_dim, f"index_head_dim {index} is less than qk_rope_head_dim {c.qk_rope_head_dim}"),
        (c.hidden_size % 32 == 0, f"hidden_size is {c.hidden_size}, not a multiple of 32 (the FP4 block)"),
        (
            c.moe_intermediate_size % 32 == 0,
            f"moe_intermediate_size is {c.moe_intermediate_size}, not a multiple of 32",
        ),
        (
            c.num_experts_per_tok <= c.n_routed_experts,
            f"num_experts_per_tok {c.num_experts_per_tok} is more than n_routed_experts {c.n_routed_experts}",
        ),
        (c.num_hash_layers <= layers, f"num_hash_layers {c.num_hash_layers} is more than {layers} layers"),
        (
            max(c.bos_token_id, c.eos_token_id) < c.vocab_size,
            f"bos/eos token ids {c.bos_token_id}/{c.eos_token_id} lie outside vocab_size {c.vocab_size}",
        ),
        (
            c.num_nextn_predict_layers <= 1 or c.is_dspark,
            f"num_nextn_predict_layers is {c.num_nextn_predict_layers}: one MTP block is known, 0 skips them",
        ),
    ]
    for holds, problem in rules:
        if not holds:
            raise CheckpointError(f"{source}: {problem}: correct the file or take another model")
