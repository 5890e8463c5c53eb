"""Sizes reported for the official models equal the published ones, to the byte where a byte count is known."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from holdfast.engine.bench.inspect import inspect_model, state_parts
from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.checkpoint.tensors import STORED_DTYPES, Checkpoint, expected_tensors, stored_parts
from holdfast.engine.errors import CheckpointError
from holdfast.engine.placement import Placement

FIXTURES = Path(__file__).parents[2] / "fixtures"
STATE = {
    "flash": {1024: 19_019_008, 131072: 476_040_192, 1048576: 3_700_378_624},
    "pro": {1024: 28_422_592, 131072: 682_750_976, 1048576: 5_299_115_008},
}


class Machine(Placement):
    """A machine with so many bytes of memory."""

    def __init__(self, num_bytes, device="cpu"):
        super().__init__(torch.device(device))
        object.__setattr__(self, "num_bytes", num_bytes)

    def memory_bytes(self):
        return self.num_bytes


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


def test_memory_is_what_each_device_takes():
    """On a CPU every weight is float32, not as it is stored."""
    directory = FIXTURES / "v4-tiny-flash"
    checkpoint = Checkpoint.open(directory, ModelConfig.from_dir(directory))
    loaded = [checkpoint.weight(name) for name in checkpoint.specs]
    report = inspect_model(directory, Machine(2**30))
    assert report.cpu_bytes == sum(weight.numel() * weight.element_size() for weight in loaded)
    assert report.needed_bytes == report.cpu_bytes > 2 * report.memory_bytes and report.fits
    text = "\n".join(report.lines())
    assert "of weights expanded to float32" in text and "this machine (CPU)          1.07 GB of memory: it fits" in text


def test_a_model_that_is_too_large_for_this_machine_is_said_to_be():
    flash = inspect_model(FIXTURES / "configs/flash", Machine(200 * 10**9))
    assert flash.memory_bytes < 160e9 and 1.1e12 < flash.cpu_bytes < 1.2e12 and not flash.fits
    lines = "\n".join(flash.lines())
    assert "this machine (CPU)          200.00 GB of memory: it does not fit, it needs 1.16 TB and its state" in lines
    gpu = inspect_model(FIXTURES / "configs/flash", Machine(200 * 10**9, "cuda"))
    assert gpu.needed_bytes == gpu.memory_bytes and gpu.fits and gpu.as_dict()["fits"] is True
    assert inspect_model(FIXTURES / "v4-tiny-flash").device_bytes > 2**28


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
