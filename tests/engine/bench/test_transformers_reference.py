"""The oracle itself, held against golden logits that neither it nor our engine computed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import DeepseekV4ForCausalLM

from holdfast.engine.bench.transformers_reference import load_oracle, new_cache, oracle_logits

FIXTURE = Path(__file__).parents[2] / "fixtures" / "v4-tiny-flash"
TOLERANCE = 2e-5  # measured: 7e-6, with a logit standard deviation of 2


@pytest.fixture(scope="module")
def oracle() -> DeepseekV4ForCausalLM:
    return load_oracle(FIXTURE)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FIXTURE / "prompts.safetensors") | load_file(FIXTURE / "plain.safetensors")


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 127, 128, 129, 131, 255, 256, 257, 300, 511, 517])
def test_prefill_gives_the_golden_logits(
    oracle: DeepseekV4ForCausalLM, golden: dict[str, Tensor], num_tokens: int
) -> None:
    logits = oracle_logits(oracle, golden[f"prompt.{num_tokens}"].tolist(), last=1)
    assert (logits[0] - golden[f"prefill.{num_tokens}.logits"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("num_tokens", [5, 129, 300, 517])
def test_chunked_prefill_and_decode_give_the_golden_logits(
    oracle: DeepseekV4ForCausalLM, golden: dict[str, Tensor], num_tokens: int
) -> None:
    cache = new_cache(oracle)
    prompt = golden[f"prompt.{num_tokens}"].tolist()
    chunks = [prompt[start : start + 100] for start in range(0, num_tokens, 100)]
    steps = [[token] for token in golden[f"decode.{num_tokens}.tokens"].tolist()]
    rows = [oracle_logits(oracle, ids, cache, last=1)[0] for ids in [*chunks, *steps]]
    logits = torch.stack(rows[len(chunks) - 1 :])
    assert (logits - golden[f"decode.{num_tokens}.logits"]).abs().max() < TOLERANCE
