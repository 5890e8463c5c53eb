"""Streams, hyper-connections and the head against their torch twins in official numerics."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import hyper as twins
from kernels.dispatch import check_signature
from kernels.gpu import jit
from kernels.gpu.hyper import embed, hc_post, hc_pre, head
from kernels.hyper import HeadWeights, HyperWeights
from kernels.rounding import Rounding

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


def head_weights(m: int, d: int, vocab: int) -> HeadWeights:
    fn, table = randn(m, m * d, seed=4) * (m * d) ** -0.5, (randn(vocab, d, seed=5) * d**-0.5).bfloat16()
    return HeadWeights(fn, randn(m, seed=6), 1 + randn(d, seed=7) / 8, table, 1e-6, 1e-6)


def on(device: torch.device, bundle: Any) -> Any:
    return bundle._make(x.to(device) if isinstance(x, Tensor) else x for x in bundle)


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    most = expected.abs().max().item() if len(expected) else 0.0
    torch.testing.assert_close(got.float().cpu(), expected, rtol=tolerance, atol=tolerance * most)


@pytest.fixture(autouse=True)
def poisoned_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody wrote is NaN."""
    empty = torch.empty

    def poisoned(*shape: Any, **options: Any) -> Tensor:
        room = empty(*shape, **options)
        return room.fill_(torch.nan if room.is_floating_point() else -7)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda x: poisoned(x.shape, dtype=x.dtype, device=x.device))


def agree(rows: int, m: int, d: int, vocab: int, device: torch.device = CPU) -> None:
    """All four ops give for these rows what their twins give."""
    ids, table = torch.arange(rows) * 5 % vocab, randn(vocab, d, seed=8).bfloat16()
    streams = embed(ids.int().to(device), table.to(device), m)
    assert torch.equal(streams.float().cpu(), twins.embed(ids.numpy(), table.float(), m, num=OFFICIAL))

    streams, w = randn(rows, m, d, seed=9).bfloat16(), hyper_weights(m, d)
    x, post, comb = hc_pre(streams.to(device), on(device, w))
    theirs = twins.hc_pre(streams.float(), w._replace(fn=w.fn.t()), num=OFFICIAL)
    assert x.dtype == torch.bfloat16
    for got, expected, tolerance in zip((x, post, comb), theirs, (2 * ULP, ORDER, ORDER)):
        close(got, expected, tolerance)

    out = randn(rows, d, seed=10).bfloat16()
    written = hc_post(out.to(device), streams.to(device), post, comb)
    assert written.dtype == torch.bfloat16
    _, post, comb = theirs
    close(written, twins.hc_post(out.float(), streams.float(), post, comb, num=OFFICIAL), ULP)

    w = head_weights(m, d, vocab)
    logits = head(streams.to(device), on(device, w))
    assert logits.dtype == torch.float32
    theirs = twins.head(streams.float(), w._replace(fn=w.fn.t(), head=w.head.float().t()), num=OFFICIAL)
    close(logits, theirs, ULP)


# the embedded model, the tiny fixture, and sizes that fill no tile
@pytest.mark.parametrize(("rows", "m", "d", "vocab"), [(3, 2, 128, 200), (17, 4, 256, 65), (1, 4, 1056, 64)])
def test_rows_get_what_the_twin_gives(rows: int, m: int, d: int, vocab: int) -> None:
    agree(rows, m, d, vocab)


def test_no_rows() -> None:
    agree(0, 4, 256, 64)


def test_ops_are_called_as_their_twins() -> None:
    for op in (embed, hc_pre, hc_post, head):
        check_signature(op, getattr(twins, op.__name__))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("d", "rows", "vocab"),
    [(d, rows, 4133) for d in (4096, 7168) for rows in (1, 16, 17, 64, 65, 300)] + [(4096, 3, 129_280)],
)
def test_rows_of_the_real_models(d: int, rows: int, vocab: int) -> None:
    agree(rows, 4, d, vocab, torch.device("cuda"))
    same_bits(rows, 4, d, torch.device("cuda"))


def test_mixing_weights_are_not_rounded_to_fewer_bits() -> None:
    """`fn` is float32: weights that differ only beyond 16 bits give different sums."""
    streams, w = torch.ones(1, 2, 128).bfloat16(), hyper_weights(2, 128)
    coarse, fine = (
        hc_pre(streams, w._replace(fn=torch.full_like(w.fn, f / 256)))[1] for f in (1 + 2**-9, 1 + 2**-9 + 2**-19)
    )
    assert (fine > coarse).all()


def same_bits(rows: int, m: int, d: int, device: torch.device) -> None:
    streams, out, order = (
        randn(rows, m, d, seed=9).bfloat16(),
        randn(rows, d, seed=10).bfloat16(),
        randn(rows).argsort(),
    )
    streams, out, order = (x.to(device) for x in (streams, out, order))
    w, h = on(device, hyper_weights(m, d)), on(device, head_weights(m, d, 65))

    def results(streams: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        x, post, comb = hc_pre(streams, w)
        return x, post, comb, hc_post(out, streams, post, comb), head(streams, h)

    together = results(streams, out)
    for count in [c for c in (1, 2, 7, 16, 17, 64) if c < rows]:
        for all_rows, few in zip(together, results(streams[:count], out[:count])):
            assert torch.equal(all_rows[:count], few), count
    for all_rows, permuted in zip(together, results(streams[order], out[order])):
        assert torch.equal(all_rows[order], permuted)


def test_a_row_has_the_same_bits_whatever_is_beside_it() -> None:
    same_bits(18, 2, 192, CPU)
