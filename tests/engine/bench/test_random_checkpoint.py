"""Random weights stand in for a real checkpoint: configuration, shapes, formats and the spread of values."""

import dataclasses
from pathlib import Path

import pytest
import torch

from holdfast.engine import EngineError
from holdfast.engine.bench.random_checkpoint import MODELS, RandomCheckpoint
from holdfast.engine.bench.real_shapes import run_random_bench, step_bytes
from holdfast.engine.checkpoint.config import ModelConfig

FIXTURES = Path(__file__).parents[2] / "fixtures"
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


def test_a_step_of_flash_reads_what_the_specification_says() -> None:
    """11.21 GB at batch 1 and a short context: weights once, and 6 of 256 experts."""
    assert step_bytes(RandomCheckpoint(MODELS["flash"], CPU), 128, 1) == pytest.approx(11.21e9, rel=0.002)


def test_the_bench_runs_on_made_up_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", ModelConfig.from_dir(FIXTURES / "v4-tiny-flash"))
    rows = list(run_random_bench("tiny", 4, 4, [700]))
    assert [row["row"] for row in rows] == ["weights", "decode", "decode", "prefill", "save", "restore"]
    assert rows[0]["layers"] == rows[0]["experts"] == 4
    assert all(0 < row["share_of_floor"] < 1 for row in rows if row["row"] == "decode")
    assert rows[4]["bytes"] == rows[5]["bytes"] > 0 and rows[4]["pages"] == 2


@pytest.mark.parametrize(
    ("layers", "experts", "contexts", "message"),
    [(44, None, None, "--layers 44 is not"), (None, 5, None, "--experts 5 is not"), (1, 6, [2**21], "context 2097152")],
)
def test_what_the_bench_cannot_do_is_one_line(
    layers: int | None, experts: int | None, contexts: list[int] | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(MODELS["flash"], hidden_size=256, vocab_size=512, moe_intermediate_size=128)
    monkeypatch.setitem(MODELS, "flash", small)
    with pytest.raises(EngineError, match=f"^{message}[^\n]*$"):
        list(run_random_bench("flash", layers, experts, contexts))
