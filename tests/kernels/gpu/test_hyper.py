"""Streams, hyper-connections and the head against their torch twins in official numerics."""

from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.kernels import hyper as twins
from holdfast.kernels.dispatch import check_signature
from holdfast.kernels.gpu import jit
from holdfast.kernels.gpu.hyper import embed, hc_next, hc_post, hc_pre, lm_head
from holdfast.kernels.hyper import HyperWeights, LMHeadWeights
from holdfast.kernels.rounding import Rounding
from tests.kernels.gpu.closeness import off

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

OFFICIAL = Rounding(official=True)
ULP = 2**-7  # of bf16: a sum in another order may round to the other side
ORDER = 3e-5  # of float32 sums in another order, and of exp and division on a GPU; tf32 would be 1e-4 off
CPU = torch.device("cpu")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hyper_weights(m: int, d: int) -> HyperWeights:
    """In the orientation of the checkpoint."""
    outs = (2 + m) * m
    fn, base = randn(outs, m * d, seed=1) * (m * d) ** -0.5, randn(outs, seed=2)
    return HyperWeights(fn, base, 1 + randn(d, seed=3) / 8, 20, 1e-6, 1e-6)


def head_weights(m: int, d: int, vocab: int) -> LMHeadWeights:
    fn, table = randn(m, m * d, seed=4) * (m * d) ** -0.5, (randn(vocab, d, seed=5) * d**-0.5).bfloat16()
    return LMHeadWeights(fn, randn(m, seed=6), 1 + randn(d, seed=7) / 8, table, 1e-6, 1e-6)


def on(device: torch.device, bundle: Any) -> Any:
    return bundle._make(x.to(device) if isinstance(x, Tensor) else x for x in bundle)


def differences(rows: int, m: int, d: int, vocab: int, device: torch.device = CPU) -> dict[str, float]:
    """How far the ops are from their twins on these rows, in units of what is allowed."""
    ids, table = torch.arange(rows) * 5 % vocab, randn(vocab, d, seed=8).bfloat16()
    streams = embed(ids.int().to(device), table.to(device), m)
    assert torch.equal(streams.float().cpu(), twins.embed(ids.numpy(), table.float(), m, num=OFFICIAL))
    found = {}

    streams, w = randn(rows, m, d, seed=9).bfloat16(), hyper_weights(m, d)
    x, post, comb = hc_pre(streams.to(device), on(device, w))
    theirs = twins.hc_pre(streams.float(), w._replace(fn=w.fn.t()), num=OFFICIAL)
    for name, got, expected, tolerance in zip(("x", "post", "comb"), (x, post, comb), theirs, (2 * ULP, ORDER, ORDER)):
        found[name] = off(got, expected, tolerance)

    out = randn(rows, d, seed=10).bfloat16()
    written = hc_post(out.to(device), streams.to(device), post, comb)
    expected = twins.hc_post(out.float(), streams.float(), *theirs[1:], num=OFFICIAL)
    found["hc_post"] = off(written, expected, ULP)

    w = head_weights(m, d, vocab)
    logits = lm_head(streams.to(device), on(device, w))
    theirs = twins.lm_head(streams.float(), w._replace(fn=w.fn.t(), lm_head=w.lm_head.float().t()), num=OFFICIAL)
    found["head"] = off(logits, theirs, ULP)
    assert (x.dtype, written.dtype, logits.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    return found


# the embedded model, the tiny fixture, and sizes that fill no tile
@pytest.mark.parametrize(("rows", "m", "d", "vocab"), [(3, 2, 128, 200), (17, 4, 256, 65), (1, 4, 1056, 64)])
def test_rows_get_what_the_twin_gives(rows: int, m: int, d: int, vocab: int) -> None:
    found = differences(rows, m, d, vocab)
    assert all(difference <= 1 for difference in found.values()), found


def test_no_rows() -> None:
    assert set(differences(0, 4, 256, 64).values()) == {0.0}


def test_ops_are_called_as_their_twins() -> None:
    for op in (embed, hc_pre, hc_post, hc_next, lm_head):
        check_signature(op, getattr(twins, op.__name__))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("d", "rows", "vocab"),
    [(d, rows, 4133) for d in (4096, 7168) for rows in (1, 16, 17, 64, 65, 300)] + [(4096, 3, 129_280)],
)
def test_rows_of_the_real_models(d: int, rows: int, vocab: int) -> None:
    found = differences(rows, 4, d, vocab, torch.device("cuda"))
    assert all(difference <= 1 for difference in found.values()), found
    assert not other_bits(rows, 4, d, torch.device("cuda"))


def test_mixing_weights_are_not_rounded_to_fewer_bits() -> None:
    """`fn` is float32: weights that differ only beyond 16 bits give different sums."""
    streams, w = torch.ones(1, 2, 128).bfloat16(), hyper_weights(2, 128)
    coarse, fine = (
        hc_pre(streams, w._replace(fn=torch.full_like(w.fn, f / 256)))[1] for f in (1 + 2**-9, 1 + 2**-9 + 2**-19)
    )
    assert (fine > coarse).all()


def other_bits(rows: int, m: int, d: int, device: torch.device) -> list[str]:
    """In which company rows have other bits."""
    streams, out, order = (
        randn(rows, m, d, seed=9).bfloat16(),
        randn(rows, d, seed=10).bfloat16(),
        randn(rows).argsort(),
    )
    streams, out, order = (x.to(device) for x in (streams, out, order))
    w, h = on(device, hyper_weights(m, d)), on(device, head_weights(m, d, 65))

    def results(streams: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        x, post, comb = hc_pre(streams, w)
        return (
            x,
            post,
            comb,
            hc_post(out, streams, post, comb),
            lm_head(streams, h),
            *hc_next(out, streams, post, comb, w),
        )

    together, found = results(streams, out), []
    for count in [c for c in (1, 2, 7, 16, 17, 64) if c < rows]:
        few = results(streams[:count], out[:count])
        if not all(torch.equal(whole[:count], part) for whole, part in zip(together, few)):
            found.append(f"{count} rows")
    permuted = results(streams[order], out[order])
    if not all(torch.equal(whole[order], part) for whole, part in zip(together, permuted)):
        found.append("another order")
    return found


def test_a_row_has_the_same_bits_whatever_is_beside_it() -> None:
    assert not other_bits(18, 2, 192, CPU)


@pytest.mark.parametrize(("rows", "m", "d"), [(3, 2, 96), (17, 4, 256), (66, 2, 128)])
def test_the_next_sublayer_reads_what_the_last_one_wrote(rows: int, m: int, d: int) -> None:
    """In one kernel for few rows: the bits of `hc_post`, then of `hc_pre`."""
    streams, out, w = randn(rows, m, d, seed=9).bfloat16(), randn(rows, d, seed=10).bfloat16(), hyper_weights(m, d)
    _, post, comb = hc_pre(streams, w)
    written = hc_post(out, streams, post, comb)
    got = hc_next(out, streams, post, comb, w)
    assert all(torch.equal(one, other) for one, other in zip(got, (written, *hc_pre(written, w)), strict=True))
