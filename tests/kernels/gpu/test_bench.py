"""The bench of the GPU kernels, as far as it can be seen without one: its order, its end, its way with errors."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from holdfast.kernels.bench import linear, moe
from holdfast.kernels.bench.__main__ import in_order, line, main, rows
from holdfast.kernels.bench.case import FLASH, Case
from holdfast.kernels.bench.measure import Ceilings, largest_error
from holdfast.kernels.gpu import jit

LIMITS = Ceilings(1e12, 1e15, 1e15, 1e-6)


def case(name: str) -> Case:
    return Case(name, FLASH, 1, 0, 1, 1, build=lambda device: lambda: None)


def made_up(case: Case, *_: Any) -> dict[str, Any]:
    """Stands in for the measurement, which needs a GPU."""
    if case.op == "broken":
        raise RuntimeError("out of memory")
    return {"case": case.name, "us": 1.0, "share_of_floor": 0.5, "share_of_copy": 0.5, "share_of_bf16": 0.1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1 and "CUDA" in said.err


def test_a_case_that_fails_leaves_the_others() -> None:
    got = list(rows([case("a"), case("broken"), case("b")], torch.device("cpu"), LIMITS, 60, made_up))
    assert [row["case"].split()[0] for row in got] == ["a", "broken", "b"]
    assert "out of memory" in got[1]["error"]
    assert "50%" in line(got[0]) and "out of memory" in line(got[1])


def test_what_there_is_no_time_for_is_named() -> None:
    assert list(rows([case("a")], torch.device("cpu"), LIMITS, -1, made_up)) == [{"left_out": [case("a").name]}]


def test_decode_comes_first() -> None:
    cases = in_order(["moe"])
    assert cases[0].rows == 1 and cases[0].shape is FLASH and cases[-1].rows > 64


SMALL = replace(
    FLASH,
    hidden_size=256,
    moe_intermediate_size=128,
    n_routed_experts=8,
    num_attention_heads=8,
    head_dim=128,
    q_lora_rank=128,
    o_groups=4,
    o_lora_rank=128,
    index_n_heads=16,
    vocab_size=64,
)


@pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")
def test_a_case_and_its_twin_compute_the_same() -> None:
    """At a small shape; what is timed at the shapes of the real models is built by the same functions."""
    device, compared = torch.device("cpu"), []
    for case in (*linear.cases_at(SMALL, 2), moe.with_twin(SMALL, 2)):
        if case.twin is not None:
            compared.append(case.op)
            assert largest_error(case.build(device)(), case.twin(device)()) < 2**-6, case.op
    assert len(compared) == 8


def test_errors_are_relative_to_the_largest_value() -> None:
    expected = torch.tensor([4.0, -1.0])
    assert largest_error((expected + 0.5, expected), (expected, expected)) == pytest.approx(0.125)
    assert largest_error(torch.zeros(0), torch.zeros(0)) == 0
