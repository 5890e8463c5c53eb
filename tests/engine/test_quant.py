"""kernels/quant against recorded codes of the reference quantisers: every byte must match."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from holdfast.kernels import quant

VECTORS = load_file(Path(__file__).parents[1] / "fixtures" / "quant-vectors.safetensors")


def vector(name):
    return VECTORS[name]


@pytest.mark.parametrize("block", [64, 128])
def test_fp8_codes_and_scales_match_the_reference(block):
    x = vector(f"fp8_block{block}.x")
    q, scale = quant.quant_fp8(x, block)
    assert torch.equal(q.view(torch.uint8), vector(f"fp8_block{block}.q"))
    assert torch.equal(quant.to_e8m0(scale), vector(f"fp8_block{block}.scale"))


@pytest.mark.parametrize("block", [64, 128])
def test_fake_fp8_matches_the_reference(block):
    expected = vector(f"fp8_block{block}.dequant")
    finite = torch.isfinite(expected)  # the largest bf16 values overflow on the way back
    assert finite.float().mean() > 0.9
    assert torch.equal(quant.fake_fp8(vector(f"fp8_block{block}.x"), block)[finite], expected[finite])


def test_fp4_codes_and_scales_match_the_reference():
    q, scale = quant.quant_fp4(vector("fp4_block32.x"))
    codes = quant.e2m1_codes(q)
    expected = vector("fp4_block32.q")
    expected = torch.stack((expected & 15, expected >> 4), -1).flatten(-2)
    same = (codes == expected) | ((codes & 7 == 0) & (expected & 7 == 0))  # the sign of zero is free
    assert same.all()
    assert torch.equal(quant.to_e8m0(scale), vector("fp4_block32.scale"))


def test_fake_fp4_matches_the_reference():
    expected = vector("fp4_block32.dequant")
    finite = torch.isfinite(expected)
    assert finite.float().mean() > 0.9
    assert torch.equal(quant.fake_fp4(vector("fp4_block32.x"))[finite], expected[finite])


def test_hadamard_is_within_one_bf16_step():
    x, y = vector("hadamard.x").float(), vector("hadamard.y")
    ours = (x @ quant.hadamard_matrix(128)).bfloat16()
    steps = ours.view(torch.int16).int() - y.view(torch.int16).int()
    assert steps.abs().max() <= 1


def test_hadamard_matrix_is_orthonormal():
    for n in (1, 2, 32, 128):
        h = quant.hadamard_matrix(n)
        assert torch.allclose(h @ h.T, torch.eye(n), atol=1e-6)


def test_decode_tables():
    codes = torch.arange(256, dtype=torch.uint8)
    e4m3 = codes.view(torch.float8_e4m3fn).float()
    assert torch.equal(e4m3.nan_to_num(7e7), vector("table.e4m3").nan_to_num(7e7))
    e8m0 = quant.from_e8m0(codes).double()
    assert e8m0[255].isnan() and torch.equal(e8m0[:255], vector("table.e8m0")[:255])
    nibbles = quant.unpack_fp4(torch.arange(16, dtype=torch.uint8).view(8, 2)[:, :1])
    assert torch.equal(nibbles[:, 0], vector("table.e2m1")[0::2])
    assert torch.equal(quant.e2m1_codes(vector("table.e2m1")), torch.arange(16, dtype=torch.uint8))


def test_fp8_weights_decode_exactly_with_a_ragged_last_block():
    q = vector("weight_fp8.q").view(torch.float8_e4m3fn)
    assert torch.equal(quant.dequant_fp8_weight(q, vector("weight_fp8.scale")), vector("weight_fp8.value"))


def test_fp4_weights_decode_exactly():
    value = quant.dequant_fp4_weight(vector("weight_fp4.q"), vector("weight_fp4.scale"))
    assert torch.equal(value, vector("weight_fp4.value"))


@pytest.mark.parametrize("shape", [(1, 32), (128, 128), (160, 192), (129, 384)])
def test_packing_a_weight_keeps_what_it_can_express(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for pack, unpack, error in (
        (
            quant.pack_fp8_weight,
            quant.dequant_fp8_weight,
            1 / 14,
        ),  # half the widest step, as a part of the largest value
        (quant.pack_fp4_weight, quant.dequant_fp4_weight, 1 / 3),
    ):
        rounded = unpack(*pack(weight))
        assert rounded.shape == weight.shape
        assert (rounded - weight).abs().max() <= weight.abs().max() * error
        assert torch.equal(unpack(*pack(rounded)), rounded)  # a second trip changes nothing


def test_kv_rows_survive_packing():
    rows = torch.randn(7, 512, generator=torch.Generator().manual_seed(2)).bfloat16()
    rows = torch.cat((quant.fake_fp8(rows[:, :448], 64), rows[:, 448:]), -1).float()
    packed = quant.pack_kv_rows(rows, 64)
    assert packed.shape == (7, 584)
    assert torch.equal(quant.unpack_kv_rows(packed, 448, 64), rows)


def test_index_rows_survive_packing():
    rows = quant.fake_fp4(torch.randn(7, 128, generator=torch.Generator().manual_seed(3)))
    packed = quant.pack_index_rows(rows)
    assert packed.shape == (7, 68)
    assert torch.equal(quant.unpack_index_rows(packed, 128), rows)


@pytest.mark.parametrize("num_rows", [0, 1])
def test_packing_no_rows_and_zero_rows(num_rows):
    rows = torch.zeros(num_rows, 96)
    assert torch.equal(quant.unpack_kv_rows(quant.pack_kv_rows(rows, 32), 64, 32), rows)
    assert torch.equal(quant.unpack_index_rows(quant.pack_index_rows(rows), 96), rows)
