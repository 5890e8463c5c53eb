"""Which fields config.json may have: the official ones, transformers' and those of older models (V4 spec 1.1).

A field is read by `engine/checkpoint/config.py`, or has one value that changes nothing here, or is refused: none is
skipped that another program would compute with.
"""

from reprlib import repr as short  # a damaged value must not fill the screen
from typing import Any

from holdfast.engine.errors import CheckpointError

# Fields with one legal value: the engine computes exactly this and no variant of it.
FIXED: dict[str, Any] = {
    "attention_bias": False,
    "hidden_act": "silu",
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_key_value_heads": 1,
    "scoring_func": "sqrtsoftplus",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
}
# The same for fields that an official file does not have.
NEUTRAL: dict[str, Any] = {
    "compress_rate_csa": 4,
    "compress_rate_hca": 128,
    "first_k_dense_replace": 0,
    "index_topk_freq": 1,
    "is_encoder_decoder": False,
    "mlp_bias": False,
    "moe_layer_freq": 1,
    "n_group": 1,
    "rope_interleave": True,
    "topk_group": 1,
}
# Another name of a field, or what follows from others: it must say the same.
DERIVED = {
    "intermediate_size": "moe_intermediate_size",
    "num_local_experts": "n_routed_experts",
    "num_experts": "n_routed_experts",
    "qk_head_dim": "head_dim",
    "qk_nope_head_dim": "nope_head_dim",
    "v_head_dim": "head_dim",
}
QUANTIZATION: dict[str, Any] = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "scale_fmt": "ue8m0",
    "weight_block_size": [128, 128],
}
# YaRN has no factor on attention here, and its bounds are rounded to whole channels.
ROPE: dict[str, Any] = {"attention_factor": 1, "mscale": None, "mscale_all_dim": None, "truncate": True}
ROPE_READ = {
    "type",
    "rope_type",
    "factor",
    "beta_fast",
    "beta_slow",
    "original_max_position_embeddings",
    "rope_theta",
    "partial_rotary_factor",
}
# Read in engine/checkpoint/config.py beside the fields of `ModelConfig`.
STRUCTURE = {
    "compress_rates",
    "layer_types",
    "mlp_layer_types",
    "model_type",
    "partial_rotary_factor",
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
}
# Of training, of generation, or only said: types of weights are those of the tensors.
INERT = {
    "architectures",
    "attention_dropout",
    "aux_loss_alpha",
    "auto_map",
    "chunk_size_feed_forward",
    "dtype",
    "ep_size",
    "expert_dtype",
    "id2label",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "seq_aux",
    "torch_dtype",
    "transformers_version",
    "unsloth_fixed",
    "use_cache",
}


def check_fields(fields: dict[str, Any], read: set[str], source: str) -> None:
    """Refuse a field that would be computed otherwise elsewhere; `read` are those that `ModelConfig` has."""
    known = read | FIXED.keys() | NEUTRAL.keys() | DERIVED.keys() | STRUCTURE | INERT
    for name, value in fields.items():
        if name not in known and not name.startswith(("_", "dspark_")) and value is not None:
            raise CheckpointError(
                f"{source}: {short(name)} is {short(value)}: this field is not known;"
                f" remove it if it changes nothing that is computed"
            )
    check_values(fields, FIXED | NEUTRAL, source)
    quantization = fields.get("quantization_config")
    if quantization is not None and not isinstance(quantization, dict):
        raise CheckpointError(f"{source}: quantization_config is {short(quantization)}: take the official config.json")
    check_values(quantization or {}, QUANTIZATION, f"{source}: quantization_config")


def check_values(fields: dict[str, Any], only: dict[str, Any], source: str) -> None:
    """Each of these fields has its one legal value, or is not given."""
    for name, legal in only.items():
        value = fields.get(name)
        if value is not None and (value != legal or isinstance(value, bool) != isinstance(legal, bool)):
            wanted = "no value" if legal is None else short(legal)
            raise CheckpointError(
                f"{source}: {name} is {short(value)}: only {wanted} can be run, take the official config.json"
            )


def check_rope(yarn: dict[str, Any], main: dict[str, Any], source: str) -> None:
    """YaRN in compressed layers as we compute it, and none in the others."""
    for rope, kind in ((yarn, "yarn"), (main, "default")):
        said = rope.get("rope_type", rope.get("type", None if rope is yarn else "default"))
        if said != kind:
            raise CheckpointError(
                f"{source}: rope type is {short(said)}: only {kind} can be run there, with factor 1 it scales nothing"
            )
        check_values(rope, ROPE, f"{source}: rope_scaling")
        unknown = sorted(rope.keys() - ROPE_READ - ROPE.keys())
        if unknown:
            raise CheckpointError(
                f"{source}: rope_scaling has {short(unknown[0])}, which is not known: take the official config.json"
            )


def check_derived(config: Any, fields: dict[str, Any], source: str) -> None:
    """Raises CheckpointError for a field of DERIVED that contradicts the fields it follows from."""
    for name, source_field in DERIVED.items():
        value, expected = fields.get(name), getattr(config, source_field)
        if value is not None and value != expected:
            raise CheckpointError(
                f"{source}: {name} is {short(value)}: other fields make it {expected}, correct the file"
            )
