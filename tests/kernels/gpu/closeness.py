"""How far results are from what they should be."""

from torch import Tensor


def off(got: Tensor, expected: Tensor, tolerance: float) -> float:
    """The largest difference from float32 `expected`, in units of what is allowed.

    Allowed is the tolerance of a value and of the largest one. Above 1 is too far; NaN is nothing that is at most 1.
    """
    assert got.shape == expected.shape
    if not expected.numel():
        return 0.0
    allowed = tolerance * (expected.abs() + expected.abs().max())
    return ((got.float().cpu() - expected).abs() / allowed).max().item()
