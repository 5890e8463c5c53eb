"""Packing rows and unpacking them, compiled, against the torch twins: the same bytes, and back the same bits."""

import pytest
import torch
from torch import Tensor

from holdfast.kernels import quant
from holdfast.kernels.cache import RowFormat
from holdfast.kernels.cpu import jit

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="numba is not installed")


def rows(dim: int, scale: float) -> Tensor:
    x = torch.randn(70, dim, generator=torch.Generator().manual_seed(3)) * scale
    x[0] = 0.0
    x[1, ::2] = -0.0
    x[2] *= 1e-9
    return x


def assert_same_bits(got: Tensor, expected: Tensor) -> None:
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 300.0, 1e6])
@pytest.mark.parametrize(("dim", "rope"), [(96, 32), (128, 64), (512, 64)])
def test_key_rows(dim: int, rope: int, scale: float) -> None:
    fmt = RowFormat(dim, rope, "key")
    for x in (rows(dim, scale), fmt.round(rows(dim, scale)), rows(dim, scale)[:0]):
        packed = fmt.pack(x)
        assert torch.equal(packed, quant.pack_kv_rows(x, rope))
        out = torch.full(x.shape, torch.nan)
        fmt.unpack_into(packed, out)
        assert_same_bits(out, quant.unpack_kv_rows(packed, dim - rope, rope))


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 300.0, 1e6])
@pytest.mark.parametrize("dim", [32, 128])
def test_index_rows(dim: int, scale: float) -> None:
    fmt = RowFormat(dim, 0, "index")
    for x in (rows(dim, scale), fmt.round(rows(dim, scale)), rows(dim, scale)[:0]):
        packed = fmt.pack(x)
        assert torch.equal(packed, quant.pack_index_rows(x))
        out = torch.full(x.shape, torch.nan)
        fmt.unpack_into(packed, out)
        assert_same_bits(out, quant.unpack_index_rows(packed, dim))
