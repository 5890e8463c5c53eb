"""Model directories: the recorded one loads, what is written reads back exactly, and damage is named before use."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.checkpoint.tensors import Checkpoint, expected_tensors, official_name
from holdfast.engine.checkpoint.writer import as_stored, random_weights, write_checkpoint
from holdfast.engine.errors import CheckpointError, EngineError
from holdfast.engine.tokenizer import Tokenizer
from holdfast.kernels.quant import dequant_fp8_weight, pack_fp8_weight

FLASH = Path(__file__).parents[2] / "fixtures" / "v4-tiny-flash"
INDEX = "model.safetensors.index.json"
TINY = dataclasses.replace(
    ModelConfig.from_dir(FLASH),
    vocab_size=48,
    hidden_size=64,
    num_hidden_layers=3,
    compress_ratios=(0, 4, 128, 0),
    num_attention_heads=4,
    head_dim=96,
    qk_rope_head_dim=32,
    q_lora_rank=64,
    o_groups=2,
    o_lora_rank=32,
    index_n_heads=2,
    index_head_dim=32,
    n_routed_experts=3,
    moe_intermediate_size=32,
    num_hash_layers=1,
)
WQ = "layers.1.attn.wq_b.weight"
EXPERT = "mtp.0.ffn.experts.2.w2.weight"


@pytest.fixture(scope="module")
def weights():
    return random_weights(TINY, seed=7)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, weights):
    directory = tmp_path_factory.mktemp("pristine")
    write_checkpoint(directory, TINY, weights, max_shard_bytes=100_000)
    return directory


@pytest.fixture
def model(tmp_path, pristine):
    """A directory that a test may damage."""
    shutil.copytree(pristine, tmp_path / "model")
    return tmp_path / "model"


def open_model(directory):
    return Checkpoint.open(directory, ModelConfig.from_dir(directory))


def refusal(directory):
    with pytest.raises(CheckpointError) as caught:
        open_model(directory)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def edit(directory, change, shard=None):
    """Rewrite a shard (that of WQ) and the index after `change(tensors)`."""
    index = json.loads((directory / INDEX).read_text())
    shard = shard or index["weight_map"][WQ]
    tensors = load_file(directory / shard)
    change(tensors)
    save_file(tensors, directory / shard)
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != shard}
    index["weight_map"] |= dict.fromkeys(tensors, shard)
    (directory / INDEX).write_text(json.dumps(index))


def rewrite_header(path, change):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def shard_of(directory, name):
    return directory / json.loads((directory / INDEX).read_text())["weight_map"][name]


def test_the_recorded_checkpoint_loads():
    checkpoint = open_model(FLASH)
    assert len(checkpoint.stored) == 585 and checkpoint.config.has_mtp
    for name, spec in checkpoint.specs.items():
        weight = checkpoint.weight(name)
        assert weight.shape == spec.shape
        assert weight.dtype == (torch.int64 if spec.kind == "i64" else torch.float32)
    assert checkpoint.tensor("layers.0.ffn.experts.0.w1.weight").dtype == torch.int8
    assert checkpoint.tensor("layers.0.ffn.experts.0.w1.scale").dtype == torch.float8_e8m0fnu


def test_what_is_written_reads_back_exactly(pristine, weights):
    checkpoint = open_model(pristine)
    assert checkpoint.config == TINY and len(checkpoint.shards) > 2
    for name, spec in checkpoint.specs.items():
        assert torch.equal(checkpoint.weight(name), as_stored(spec, weights[name])), name
    index = json.loads((pristine / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(place.num_bytes for place in checkpoint.stored.values())
    assert not list(pristine.glob("*.new"))


def test_a_second_trip_through_the_format_changes_nothing(tmp_path, pristine):
    first = open_model(pristine)
    write_checkpoint(tmp_path, TINY, {name: first.weight(name) for name in first.specs})
    second = open_model(tmp_path)
    assert len(second.shards) == 1
    for name in first.specs:
        assert torch.equal(first.weight(name), second.weight(name)), name


def test_dequantised_checkpoints_hold_the_given_values(tmp_path, weights):
    write_checkpoint(tmp_path, TINY, weights, dequantised=True, extra_config={"_note": 1})
    fields = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in fields and fields["torch_dtype"] == "float32" and fields["_note"] == 1
    checkpoint = open_model(tmp_path)
    for name in checkpoint.specs:
        assert torch.equal(checkpoint.weight(name), weights[name]), name


def test_a_lone_file_without_an_index_loads(tmp_path, weights):
    write_checkpoint(tmp_path, TINY, weights)
    (tmp_path / INDEX).unlink()
    (tmp_path / "model-00001-of-00001.safetensors").rename(tmp_path / "model.safetensors")
    assert torch.equal(open_model(tmp_path).weight("norm.weight"), weights["norm.weight"].bfloat16().float())


def test_experts_may_be_fp8(model, weights):
    packed = pack_fp8_weight(weights[EXPERT])

    def change(tensors):
        tensors[EXPERT], tensors[EXPERT.replace("weight", "scale")] = packed

    edit(model, change, shard_of(model, EXPERT).name)
    assert torch.equal(open_model(model).weight(EXPERT), dequant_fp8_weight(*packed))


def test_random_weights_use_every_parameter(weights):
    assert weights.keys() == expected_tensors(TINY).keys()
    for name, weight in weights.items():
        assert name.endswith("tid2eid") or (weight.abs() > 1e-6).float().mean() > 0.99, name
    table = weights["layers.0.ffn.gate.tid2eid"]
    assert table.shape == (48, 2) and (table[:, 0] != table[:, 1]).all() and table.max() < 3
    assert torch.equal(random_weights(TINY, seed=7)[WQ], weights[WQ])
    assert not torch.equal(random_weights(TINY, seed=8)[WQ], weights[WQ])


def test_identity_follows_content_and_config_not_files(tmp_path, pristine, weights):
    identity = open_model(pristine).identity()
    write_checkpoint(tmp_path / "one", TINY, weights)
    assert open_model(tmp_path / "one").identity() == identity

    changed = dict(weights) | {"norm.weight": weights["norm.weight"] * 2}
    write_checkpoint(tmp_path / "two", TINY, changed)
    assert open_model(tmp_path / "two").identity() != identity
    write_checkpoint(tmp_path / "three", TINY, weights, extra_config={"rope_theta": 20000})
    assert open_model(tmp_path / "three").identity() != identity


def test_identity_of_large_models_samples_each_tensor(pristine, monkeypatch):
    full = open_model(pristine).identity()
    monkeypatch.setattr("holdfast.engine.checkpoint.tensors.FULL_DIGEST_BYTES", 0)
    monkeypatch.setattr("holdfast.engine.checkpoint.tensors.SAMPLE_BYTES", 64)
    sampled = open_model(pristine).identity()
    assert sampled != full and sampled == open_model(pristine).identity()


def test_transformers_names_are_understood():
    assert official_name("model.embed_tokens.weight") == "embed.weight"
    assert official_name("model.hc_head.hc_scale") == "hc_head_scale"
    assert official_name("model.layers.7.attn.norm.weight") == "layers.7.attn.kv_norm.weight"
    assert official_name("model.layers.7.attn.compressor.norm.weight") == "layers.7.attn.compressor.norm.weight"
    assert official_name("layers.7.attn_norm.weight") == "layers.7.attn_norm.weight"
    assert official_name("head.weight") == "head.weight"


def test_transformers_loads_ours_and_we_load_theirs(tmp_path, weights):
    transformers = pytest.importorskip("transformers")
    write_checkpoint(tmp_path / "ours", TINY, weights, dequantised=True)
    theirs, info = transformers.DeepseekV4ForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    theirs.save_pretrained(tmp_path / "theirs")

    checkpoint = open_model(tmp_path / "theirs")
    assert not checkpoint.config.has_mtp  # transformers drops the block and still announces it
    assert checkpoint.specs.keys() == {name for name in weights if not name.startswith("mtp.")}
    for name in checkpoint.specs:
        assert torch.equal(checkpoint.weight(name), weights[name]), name


def test_a_dspark_drafter_is_skipped(model):
    def change(tensors):
        for name in [name for name in tensors if name.startswith("mtp.0.e_proj")]:
            del tensors[name]
        tensors["mtp.0.main_proj.weight"] = torch.zeros(2, 2)
        tensors["mtp.2.markov_head.markov_w1.weight"] = torch.zeros(2, 2)

    edit(model, change, shard_of(model, "mtp.0.e_proj.weight").name)
    checkpoint = open_model(model)
    assert checkpoint.config.is_dspark and not any(name.startswith("mtp.") for name in checkpoint.stored)


def test_shared_tables_below_mtp_are_skipped(model):
    edit(model, lambda tensors: tensors.update({"mtp.0.head.weight": torch.zeros(1)}))
    assert open_model(model).config.has_mtp


@pytest.mark.parametrize("name", [WQ, "layers.1.attn.wq_b.scale"])
def test_a_missing_tensor_is_named(model, name):
    edit(model, lambda tensors: tensors.pop(name))
    assert f"lacks {name}" in refusal(model)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("layers.1.attn.wq_c.weight", torch.zeros(2), "which this model does not have"),
        ("model." + WQ, torch.zeros(2), "stored twice"),
        (WQ, torch.zeros(384, 65), "F32 [384, 65], expected F32 [384, 64]"),
        (WQ, torch.zeros(384, 64, dtype=torch.float16), "is F16, expected F8_E4M3 or BF16 or F32"),
        (WQ, torch.zeros(384, 32, dtype=torch.int8), "is I8, expected F8_E4M3"),
        (WQ, torch.zeros(384, 64), "layers.1.attn.wq_b.scale', which this model does not have"),
        ("layers.1.attn.wq_b.scale", torch.zeros(3, 1), "F32 [3, 1], expected F8_E8M0 [3, 1]"),
        ("layers.1.attn.attn_sink", torch.zeros(4, dtype=torch.bfloat16), "is BF16, expected F32"),
        ("layers.1.attn.attn_sink", torch.zeros(()), "F32 [], expected F32 [4]"),
    ],
)
def test_a_wrong_tensor_is_named_with_what_was_found_and_expected(model, name, value, said):
    edit(model, lambda tensors: tensors.update({name: value}))
    assert said in refusal(model) and official_name(name).removesuffix("weight") in refusal(model)


def test_weights_of_another_model_are_refused(model):
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {"num_hash_layers": 2}))
    assert "lacks layers.1.ffn.gate.tid2eid" in refusal(model)


@pytest.mark.parametrize("kept_bytes", [0, 7, 8, 500, -1, -5000])
def test_a_truncated_shard_is_refused_at_open(model, kept_bytes):
    shard = shard_of(model, WQ)
    shard.write_bytes(shard.read_bytes()[:kept_bytes])
    assert shard.name in refusal(model)


def test_a_shard_with_bytes_that_nobody_owns_is_refused(model):
    shard = shard_of(model, WQ)
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert "no tensor owns" in refusal(model)


def test_a_missing_shard_and_missing_weights_are_named(model):
    shard = shard_of(model, WQ)
    shard.unlink()
    assert shard.name in refusal(model)
    (model / INDEX).unlink()
    assert "download the weights" in refusal(model)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 64,
        b"\0" * 64,
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (5).to_bytes(8, "little") + b"{nope",
        (9).to_bytes(8, "little") + b'{"a": 1} ',
        (2**63).to_bytes(8, "little") + b"{}",
        (60000).to_bytes(8, "little") + b"[" * 60000,
    ],
)
def test_a_garbage_header_is_refused(model, content):
    shard = shard_of(model, WQ)
    shard.write_bytes(content)
    assert shard.name in refusal(model)


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "F4"},
        {"dtype": 3},
        {"shape": [384, -64]},
        {"shape": [384, 2**80]},
        {"shape": [2**40, 2**40]},
        {"shape": "big"},
        {"shape": [1] * 1000},
        {"data_offsets": [0, 2**62]},
        {"data_offsets": [-1, 24575]},
        {"data_offsets": [5]},
        {"data_offsets": [1, 24577]},
        {"data_offsets": None},
    ],
)
def test_a_header_entry_that_lies_is_refused(model, fields):
    shard = shard_of(model, WQ)
    rewrite_header(shard, lambda header: header[WQ].update(fields))
    assert shard.name in refusal(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: "",
        lambda index: [],
        lambda index: {},
        lambda index: {"weight_map": []},
        lambda index: {"weight_map": {WQ: 5}},
        lambda index: {"weight_map": {WQ: "../config.json"}},
        lambda index: {"weight_map": index["weight_map"] | {WQ: "model-00009-of-00003.safetensors"}},
        lambda index: {"weight_map": index["weight_map"] | {"ghost.weight": "model-00001-of-" + "00003.safetensors"}},
        lambda index: {"weight_map": {k: v for k, v in index["weight_map"].items() if k != WQ}},
    ],
)
def test_an_index_that_lies_is_refused(model, change):
    index = json.loads((model / INDEX).read_text())
    (model / INDEX).write_text(json.dumps(change(index)))
    assert "index" in refusal(model)


def test_an_index_that_is_not_json_is_refused(model):
    (model / INDEX).write_bytes(b"\xff{")
    assert INDEX in refusal(model)


def test_nan_scales_and_weights_are_refused_when_read(model):
    def change(tensors):
        tensors["layers.1.attn.wq_b.scale"].view(torch.uint8)[1, 0] = 255
        tensors["layers.1.attn.wkv.weight"].view(torch.uint8)[3, 3] = 0x7F
        tensors["layers.1.attn.attn_sink"][1] = float("inf")

    edit(model, change)
    checkpoint = open_model(model)
    for name in (WQ, "layers.1.attn.wkv.weight", "layers.1.attn.attn_sink"):
        with pytest.raises(CheckpointError, match="holds NaN"):
            checkpoint.weight(name)


def test_a_table_that_names_unknown_experts_is_refused_when_read(model):
    name = "layers.0.ffn.gate.tid2eid"
    edit(model, lambda tensors: tensors[name].fill_(3), shard_of(model, name).name)
    with pytest.raises(CheckpointError, match=r"outside 0\.\.2"):
        open_model(model).weight(name)


def test_a_table_that_names_an_expert_twice_is_refused_when_read(model):
    name = "layers.0.ffn.gate.tid2eid"
    edit(model, lambda tensors: tensors[name][7].fill_(1), shard_of(model, name).name)
    with pytest.raises(CheckpointError, match=r"names an expert twice"):
        open_model(model).weight(name)


def zeros(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def huge(path):
    os.truncate(path, 1 << 34)


def nested(path):
    path.write_text('{"a":' + "[" * 100_000)


@pytest.mark.parametrize("spoil", [zeros, pipe, huge, nested])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", INDEX, WQ])
def test_a_file_that_is_none_is_refused_in_one_line(model, name, spoil):
    (model / "tokenizer.json").write_text("{}")
    name = shard_of(model, WQ).name if name == WQ else name
    spoil(model / name)
    with pytest.raises(EngineError) as caught:
        Tokenizer.from_dir(model) if name == "tokenizer.json" else open_model(model)
    assert name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_the_writer_refuses_weights_that_do_not_fit(tmp_path, weights):
    with pytest.raises(AssertionError, match="norm"):
        write_checkpoint(tmp_path, TINY, {name: w for name, w in weights.items() if name != "norm.weight"})
    with pytest.raises(AssertionError, match=r"wq_b"):
        write_checkpoint(tmp_path, TINY, dict(weights) | {WQ: torch.full((384, 64), float("nan"))})
    assert not (tmp_path / INDEX).exists()
