"""The bench of the GPU kernels, as far as it can be seen without one: its order, its end, its way with errors."""

from typing import Any

import pytest
import torch

from kernels.bench.__main__ import in_order, line, main, rows
from kernels.bench.case import FLASH, Case
from kernels.bench.measure import Ceilings, largest_error

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


def test_errors_are_relative_to_the_largest_value() -> None:
    expected = torch.tensor([4.0, -1.0])
    assert largest_error((expected + 0.5, expected), (expected, expected)) == pytest.approx(0.125)
    assert largest_error(torch.zeros(0), torch.zeros(0)) == 0
