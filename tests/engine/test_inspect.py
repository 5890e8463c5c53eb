"""Sizes reported for the official models equal the published ones, to the byte where a byte count is known."""

import json
import shutil
from pathlib import Path

import pytest

from engine.checkpoint import STORED_DTYPES, expected_tensors, stored_parts
from engine.config import ModelConfig
from engine.errors import CheckpointError
from engine.inspect import inspect_model, state_parts

FIXTURES = Path(__file__).parents[1] / "fixtures"
STATE = {
    "flash": {1024: 19_019_008, 131072: 476_040_192, 1048576: 3_700_378_624},
    "pro": {1024: 28_422_592, 131072: 682_750_976, 1048576: 5_299_115_008},
}


@pytest.mark.parametrize("model", ["flash", "pro"])
def test_state_bytes_equal_the_published_totals(model):
    report = inspect_model(FIXTURES / "configs" / model)
    assert report.state_bytes == STATE[model]
    text = {"flash": "3.70 GB", "pro": "5.30 GB"}[model]
    assert any(line.startswith("state at 1,048,576 tokens") and line.endswith(text) for line in report.lines())


def test_state_parts_equal_the_published_columns():
    parts = state_parts(ModelConfig.from_dir(FIXTURES / "configs/flash"), 1024)
    assert list(parts.values()) == [3_139_584, 365_568, 93_440, 3_214_336, 12_206_080]
    empty = state_parts(ModelConfig.from_dir(FIXTURES / "configs/flash"), 3)
    assert list(empty.values())[:3] == [0, 0, 0]


@pytest.mark.parametrize(("model", "num_tensors"), [("flash", 69_187), ("pro", 145_116)])
def test_as_many_tensors_as_the_official_files(model, num_tensors):
    specs = expected_tensors(ModelConfig.from_dir(FIXTURES / "configs" / model))
    assert (
        sum(len(stored_parts(name, spec, STORED_DTYPES[spec.kind][0])) for name, spec in specs.items()) == num_tensors
    )


def test_pro_bytes_equal_the_official_index():
    report = inspect_model(FIXTURES / "configs/pro")
    assert report.disk_is_estimated and report.disk_bytes == report.memory_bytes == 864_704_792_696
    assert any("864.70 GB (no weights here: estimated)" in line for line in report.lines())


@pytest.mark.parametrize(
    ("model", "name", "total", "active"),
    [("flash", "DeepSeek-V4-Flash", 284.3, 13.3), ("pro", "DeepSeek-V4-Pro", 1573.0, 48.9)],
)
def test_parameters_match_the_model_cards(model, name, total, active):
    report = inspect_model(FIXTURES / "configs" / model)
    assert report.name == name
    assert (report.total_parameters - report.parameters["MTP"]) / 1e9 == pytest.approx(total, abs=0.05)
    assert report.active_parameters / 1e9 == pytest.approx(active, abs=0.05)
    assert sum(report.parameters.values()) == report.total_parameters


def test_a_directory_with_weights_is_measured():
    directory = FIXTURES / "v4-tiny-flash"
    report = inspect_model(directory)
    assert not report.disk_is_estimated and report.expert_format == "FP4" and report.has_mtp
    assert report.disk_bytes == sum(path.stat().st_size for path in directory.glob("model-*.safetensors"))
    assert report.layers == {"window": 2, "CSA": 2, "HCA": 2}
    assert 0 < report.active_parameters < report.total_parameters
    assert json.loads(json.dumps(report.as_dict()))["state_bytes"]["1024"] == report.state_bytes[1024]


def test_broken_weights_are_not_reported_on(tmp_path):
    shutil.copytree(FIXTURES / "v4-tiny-flash", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        inspect_model(tmp_path)


def test_a_dspark_model_is_reported_without_its_drafter(tmp_path):
    fields = json.loads((FIXTURES / "configs/flash/config.json").read_text()) | {"dspark_block_size": 5}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    report = inspect_model(tmp_path)
    assert "DSpark" in report.name and report.parameters["MTP"] == 0
    assert report.state_bytes == STATE["flash"]
