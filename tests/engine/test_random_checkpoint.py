"""Random weights stand in for a real checkpoint: its configuration, its shapes and formats, and values of the right spread."""

import dataclasses
from pathlib import Path

import pytest
import torch

from engine.config import ModelConfig
from engine.random_checkpoint import MODELS, RandomCheckpoint

FIXTURES = Path(__file__).parents[1] / "fixtures"
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", MODELS)
def test_configurations_are_the_published_ones(name: str) -> None:
    assert MODELS[name] == ModelConfig.from_dir(FIXTURES / "configs" / name)


def test_weights_have_the_spread_of_trained_ones() -> None:
    checkpoint = RandomCheckpoint(ModelConfig.from_dir(FIXTURES / "v4-tiny-flash"), CPU)
    for name in ("attn.wq_b", "ffn.experts.0.w1", "attn.compressor.wkv", "ffn.gate"):
        weight = checkpoint.weight(f"layers.2.{name}.weight")
        assert 0.6 < weight.std() * weight.shape[1] ** 0.5 < 1.5, name  # scales are powers of two
    assert checkpoint.weight("layers.2.attn_norm.weight").mean() == pytest.approx(1, abs=0.05)


def test_the_same_name_gives_the_same_values_and_parts_are_parts() -> None:
    config = dataclasses.replace(MODELS["flash"], num_hidden_layers=1, n_routed_experts=8, vocab_size=512)
    one, other = RandomCheckpoint(config, CPU), RandomCheckpoint(config, CPU)
    name = "layers.0.ffn.experts.3.w2.weight"
    assert torch.equal(one.tensor(name), other.tensor(name))
    assert torch.equal(one.tensor(name, range(128, 256), range(16)), one.tensor(name)[128:256, :16])
    assert not torch.equal(one.tensor(name), one.tensor(name.replace("w2", "w1")).view(4096, -1))
    experts = one.tensor("layers.0.ffn.gate.tid2eid")
    assert all(len(set(row)) == 6 for row in experts.tolist())
