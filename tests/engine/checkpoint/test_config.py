"""config.json in, ModelConfig out; what the engine cannot run is refused in one line that names file and value."""

import json
from pathlib import Path

import pytest

from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.errors import CheckpointError

FIXTURES = Path(__file__).parents[2] / "fixtures"


YARN = {"type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 65536}


def flash():
    return json.loads((FIXTURES / "configs/flash/config.json").read_text())


def refusal(fields):
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(fields, "here/config.json")
    message = str(caught.value)
    assert "\n" not in message and "here/config.json" in message and len(message) < 300
    return message


def test_official_layer_kinds():
    c = ModelConfig.from_dir(FIXTURES / "configs/flash")
    kinds = [c.ratio(layer) for layer in range(44)]
    assert kinds[:5] == [0, 0, 4, 128, 4] and kinds[42:] == [4, 0]
    assert (kinds.count(0), kinds.count(4), kinds.count(128)) == (3, 21, 20)
    assert [c.is_hash_layer(layer) for layer in (0, 2, 3, 43)] == [True, True, False, False]
    assert (c.nope_head_dim, c.has_mtp, c.rope_factor, c.compress_rope_theta) == (448, True, 16.0, 160000.0)

    pro = ModelConfig.from_dir(FIXTURES / "configs/pro")
    kinds = [pro.ratio(layer) for layer in range(61)]
    assert kinds[:4] == [128, 128, 4, 128] and (kinds.count(4), kinds.count(128)) == (30, 31)


@pytest.mark.parametrize("name", ["configs/flash", "configs/pro", "v4-tiny-flash"])
def test_to_dict_is_an_official_config_that_reads_back(name):
    official = json.loads((FIXTURES / name / "config.json").read_text())
    config = ModelConfig.from_dir(FIXTURES / name)
    written = json.loads(json.dumps(config.to_dict()))
    assert {key: written.get(key) for key in official} == official
    assert written.keys() - official.keys() <= {"expert_dtype"}
    assert ModelConfig.from_dict(written) == config


def test_optional_fields_take_official_values():
    fields = flash()
    for name in ("qk_rope_head_dim", "sliding_window", "swiglu_limit", "hc_mult", "rope_theta", "rope_scaling"):
        del fields[name]
    fields["hc_eps"] = None
    assert ModelConfig.from_dict(fields) == ModelConfig.from_dict(flash())


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "compress_ratios", "n_routed_experts", "index_topk"])
def test_a_needed_field_that_is_missing(name):
    fields = flash()
    del fields[name]
    assert f"has no {name}" in refusal(fields)


def test_transformers_spelling():
    fields = flash()
    ratios = fields.pop("compress_ratios")
    kinds = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    fields["layer_types"] = [kinds[ratio] for ratio in ratios[:43]]
    fields["compress_rates"] = {kinds[4]: 4, kinds[128]: 128}
    fields["mlp_layer_types"] = ["hash_moe"] * fields.pop("num_hash_layers") + ["moe"] * 40
    yarn = fields.pop("rope_scaling")
    del fields["rope_theta"], fields["compress_rope_theta"]
    fields["rope_parameters"] = {
        "main": {"rope_type": "default", "rope_theta": 10000.0},
        "compress": {**yarn, "rope_type": "yarn", "rope_theta": 160000.0, "factor": 8},
    }
    c = ModelConfig.from_dict(fields)
    assert c.compress_ratios == tuple(ratios[:43]) and c.ratio(43) == 0
    assert (c.num_hash_layers, c.rope_factor, c.rope_theta, c.compress_rope_theta) == (3, 8.0, 10000.0, 160000.0)

    fields["compress_rates"][kinds[128]] = 16
    assert "compress_ratios[3] is 16" in refusal(fields)
    fields["layer_types"][1] = "linear_attention"
    assert "linear_attention" in refusal(fields)
    fields["layer_types"] = "sliding_attention"
    refusal(fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_scaling", YARN | {"attention_factor": 1.0, "truncate": True, "mscale": None, "rope_type": "yarn"}),
        ("index_topk_freq", 1),
        ("n_group", 1),
        ("topk_group", None),
        ("partial_rotary_factor", 0.125),
        ("intermediate_size", 2048),
        ("compress_rates", {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}),
        ("mlp_layer_types", ["hash_moe"] * 3 + ["moe"] * 40),
        ("a_field_of_tomorrow", None),
        ("_name_or_path", "x"),
        ("router_jitter_noise", 0.1),
    ],
)
def test_a_value_that_changes_nothing_is_accepted(name, value):
    assert ModelConfig.from_dict(flash() | {name: value}) == ModelConfig.from_dict(flash())


def test_what_transformers_saves_of_a_config_reads_back_as_it_computes():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.DeepseekV4Config(
        num_hidden_layers=5,
        mlp_layer_types=["hash_moe"] + ["moe"] * 4,
        head_dim=96,
        partial_rotary_factor=1 / 3,
        rope_parameters=YARN | {"rope_type": "yarn", "factor": 8.0},
    )
    ours = ModelConfig.from_dict(json.loads(theirs.to_json_string(use_diff=False)))
    assert (ours.qk_rope_head_dim, ours.num_hash_layers, ours.rope_factor) == (32, 1, 8.0)
    assert [ours.ratio(layer) for layer in range(5)] == [128, 128, 128, 4, 128]

    plain = transformers.DeepseekV4Config(num_hidden_layers=5)  # without YaRN: we would compute it
    assert "rope" in refusal(json.loads(plain.to_json_string(use_diff=False)))


def test_extra_ratios_are_legal_and_too_few_are_not():
    fields = flash()
    fields["compress_ratios"] += [0, 0]
    assert ModelConfig.from_dict(fields).ratio(43) == 0
    fields["compress_ratios"] = fields["compress_ratios"][:42]
    assert "42 entries for 43 layers" in refusal(fields)


def test_dspark_is_recognised_and_its_drafter_left_out():
    fields = flash() | {"dspark_block_size": 5, "dspark_target_layer_ids": [40, 41, 42]}
    fields["compress_ratios"] = fields["compress_ratios"] + [0, 0]
    c = ModelConfig.from_dict(fields)
    assert c.is_dspark and not c.has_mtp
    assert not ModelConfig.from_dict(c.to_dict()).has_mtp
    assert not ModelConfig.from_dict(flash() | {"num_nextn_predict_layers": 0}).has_mtp


def test_other_families_are_named():
    message = refusal({"model_type": "deepseek_v41", "text_config": {}})
    assert "DeepSeek-V4.1" in message and "another architecture, not supported" in message
    assert "llama" in refusal(flash() | {"model_type": "llama"})
    assert "None" in refusal({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_shared_experts", 2),
        ("scoring_func", "sigmoid"),
        ("tie_word_embeddings", True),
        ("tie_word_embeddings", 0),
        ("hidden_act", "gelu"),
        ("num_key_value_heads", 8),
        ("attention_bias", True),
        ("norm_topk_prob", False),
        ("topk_method", "greedy"),
        ("hidden_size", "4096"),
        ("hidden_size", 4096.0),
        ("hidden_size", True),
        ("hidden_size", [4096]),
        ("hidden_size", 0),
        ("hidden_size", -4096),
        ("hidden_size", 4100),
        ("hidden_size", 10**300),
        ("num_hidden_layers", 10**6),
        ("n_routed_experts", 10**9),
        ("n_routed_experts", 5),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", float("inf")),
        ("rms_norm_eps", 0),
        ("rope_theta", -1.0),
        ("rope_theta", "10000"),
        ("swiglu_limit", False),
        ("routed_scaling_factor", {}),
        ("head_dim", 500),
        ("head_dim", 64),
        ("qk_rope_head_dim", 63),
        ("index_head_dim", 96),
        ("index_head_dim", 80),
        ("index_head_dim", 32),
        ("o_groups", 7),
        ("moe_intermediate_size", 2040),
        ("num_hash_layers", 44),
        ("num_hash_layers", -1),
        ("eos_token_id", 129280),
        ("num_nextn_predict_layers", 2),
        ("compress_ratios", "0,4,128"),
        ("compress_ratios", [2] * 44),
        ("compress_ratios", [False] * 44),
        ("compress_ratios", [[4]] * 44),
        ("rope_scaling", "yarn"),
        ("rope_scaling", {"type": "linear", "factor": 16}),
        ("rope_scaling", {"type": "yarn", "factor": "16"}),
        ("quantization_config", {"weight_block_size": [32, 32]}),
        ("rope_scaling", None),
        ("rope_scaling", {}),
        ("rope_scaling", {"factor": 16}),
        ("rope_scaling", YARN | {"attention_factor": 1.2}),
        ("rope_scaling", YARN | {"mscale": 1.0}),
        ("rope_scaling", YARN | {"truncate": False}),
        ("rope_scaling", YARN | {"long_factor": [1.0]}),
        ("rope_scaling", YARN | {"rope_theta": 5000.0}),
        ("rope_parameters", YARN | {"factor": 4}),
        ("rope_factor", 4.0),
        ("partial_rotary_factor", 0.25),
        ("compress_rates", {"heavily_compressed_attention": 64}),
        ("compress_rate_hca", 64),
        ("layer_types", ["sliding_attention"] * 43),
        ("mlp_layer_types", ["dense"] * 43),
        ("mlp_layer_types", ["moe"] * 43),
        ("index_topk_freq", 4),
        ("index_topk_pattern", "FFSS"),
        ("n_group", 8),
        ("topk_group", 4),
        ("first_k_dense_replace", 3),
        ("moe_layer_freq", 2),
        ("mlp_bias", True),
        ("intermediate_size", 18432),
        ("num_local_experts", 8),
        ("v_head_dim", 128),
        ("kv_lora_rank", 512),
        ("rope_interleave", False),
        ("a_field_of_tomorrow", 1),
        ("quantization_config", {"quant_method": "awq"}),
        ("quantization_config", {"activation_scheme": "static"}),
        ("quantization_config", "fp8"),
        ("vocab_size", "9" * 10000),
    ],
)
def test_values_that_cannot_be_run_are_refused(name, value):
    message = refusal(flash() | {name: value})
    assert any(word in message for word in (name.split("_")[0], "rope", "factor", "block", "num_hash"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\x00", "[" * 100000, '{"model_type": "deepseek_v4"'])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dir(tmp_path)
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_or_unreadable_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        ModelConfig.from_dir(tmp_path / "nowhere")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        ModelConfig.from_dir(tmp_path)
    (tmp_path / "config.json").rmdir()
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="is not JSON"):
        ModelConfig.from_dir(tmp_path)
