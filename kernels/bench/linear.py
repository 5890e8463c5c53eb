"""Cases of the products around attention, the hyper-connections and the head."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.kernels import hyper as hyper_twins
from holdfast.kernels import project as project_twins
from holdfast.kernels.bench.case import DECODE_ROWS, FLASH, PREFILL_ROWS, PRO, Call, Case, Shape
from holdfast.kernels.bench.inputs import fp8, fp8_values, random
from holdfast.kernels.gpu.hyper import embed, hc_next, hc_post, hc_pre, lm_head
from holdfast.kernels.gpu.project import output, project, rope_table
from holdfast.kernels.hyper import HyperWeights, LMHeadWeights
from holdfast.kernels.project import OutputWeights, ProjectWeights
from holdfast.kernels.quant import hadamard_matrix
from holdfast.kernels.rope import rope_frequencies
from holdfast.kernels.rounding import Rounding

OFFICIAL = Rounding(official=True)
EPS = 1e-6


def cases() -> Iterator[Case]:
    for shape in (FLASH, PRO):
        for rows in (*DECODE_ROWS, *PREFILL_ROWS):
            yield from cases_at(shape, rows)


def cases_at(shape: Shape, rows: int) -> Iterator[Case]:
    """All ops for so many rows, but for the head in a prefill: it wants logits of its last rows only."""
    yield from _small(shape, rows)
    yield _project(shape, rows, shape.index_n_heads)
    yield _project(shape, rows, 0)
    yield _output(shape, rows)
    if rows not in PREFILL_ROWS:
        yield _lm_head(shape, rows)


def _small(shape: Shape, rows: int) -> Iterator[Case]:
    m, d = shape.hc_mult, shape.hidden_size
    streams, outs = 2 * rows * m * d, (2 + m) * m  # bytes of the streams, mixing weights of a row
    num_pairs = shape.qk_rope_head_dim // 2
    yield Case("embed", shape, rows, 0, streams + 2 * rows * d, 0, partial(_build_embed, shape, rows))
    yield Case("rope_table", shape, rows, 0, 8 * rows * (num_pairs + 1), 0, partial(_build_rope_table, shape, rows))
    yield Case(
        "hc_pre",
        shape,
        rows,
        0,
        streams + 2 * rows * d + 4 * outs * (m * d + rows),
        2 * rows * m * d * (outs + 2),
        partial(_build_hc_pre, shape, rows),
        partial(_twin_hc_pre, shape, rows),
    )
    yield Case(
        "hc_post",
        shape,
        rows,
        0,
        2 * streams + 2 * rows * d + 4 * outs * rows,
        2 * rows * m * d * (m + 1),
        partial(_build_hc_post, shape, rows),
        partial(_twin_hc_post, shape, rows),
    )
    yield Case(
        "hc_next",
        shape,
        rows,
        0,
        3 * streams + 4 * rows * d + 4 * outs * (m * d + 2 * rows),
        2 * rows * m * d * (outs + m + 3),
        partial(_build_hc_next, shape, rows),
        partial(_twin_hc_next, shape, rows),
    )


def _project(shape: Shape, rows: int, index_heads: int) -> Case:
    dim, rank, d = shape.head_dim, shape.q_lora_rank, shape.hidden_size
    queries = shape.num_attention_heads * dim + index_heads * shape.index_head_dim
    num_weights = d * (rank + dim) + rank * queries
    return Case(
        "project" if index_heads else "project without indexer",
        shape,
        rows,
        0,
        _fp8_bytes(num_weights) + 2 * rows * (d + dim + queries),
        2 * rows * num_weights,
        partial(_build_project, shape, rows, index_heads),
        partial(_twin_project, shape, rows, index_heads),
        partial(_library, rows, [(d, rank + dim), (rank, queries)]),
    )


def _output(shape: Shape, rows: int) -> Case:
    d, low = shape.hidden_size, shape.o_groups * shape.o_lora_rank
    width = shape.num_attention_heads * shape.head_dim
    num_weights = width * shape.o_lora_rank + low * d
    return Case(
        "output",
        shape,
        rows,
        0,
        _fp8_bytes(num_weights) + 2 * rows * (width + d),
        2 * rows * num_weights,
        partial(_build_output, shape, rows),
        partial(_twin_output, shape, rows),
        partial(_library, rows, [(width // shape.o_groups, shape.o_lora_rank)] * shape.o_groups + [(low, d)]),
    )


def _lm_head(shape: Shape, rows: int) -> Case:
    d, m, vocab = shape.hidden_size, shape.hc_mult, shape.vocab_size
    num_bytes = 2 * vocab * d + 4 * m * m * d + rows * (2 * m * d + 4 * vocab)
    return Case(
        "head",
        shape,
        rows,
        0,
        num_bytes,
        2 * rows * d * (vocab + m * m),
        partial(_build_lm_head, shape, rows),
        partial(_twin_lm_head, shape, rows),
        partial(_library, rows, [(d, vocab)]),
    )


def _build_embed(shape: Shape, rows: int, device: torch.device) -> Call:
    ids = torch.zeros(rows, dtype=torch.int32, device=device)
    table = random(device, shape.vocab_size, shape.hidden_size).bfloat16()
    return lambda: embed(ids, table, shape.hc_mult)


def _build_rope_table(shape: Shape, rows: int, device: torch.device) -> Call:
    positions, freqs = torch.zeros(rows, dtype=torch.int64, device=device), _freqs(shape, device)
    return lambda: rope_table(positions, freqs)


def _build_hc_pre(shape: Shape, rows: int, device: torch.device) -> Call:
    streams, w = _streams(shape, rows, device), _hyper_weights(shape, device)
    return lambda: hc_pre(streams, w)


def _twin_hc_pre(shape: Shape, rows: int, device: torch.device) -> Call:
    streams, w = _streams(shape, rows, device).float(), _hyper_weights(shape, device)
    w = w._replace(fn=w.fn.t())
    return lambda: hyper_twins.hc_pre(streams, w, num=OFFICIAL)


def _build_hc_post(shape: Shape, rows: int, device: torch.device) -> Call:
    out, streams, post, comb = _written(shape, rows, device)
    return lambda: hc_post(out, streams, post, comb)


def _twin_hc_post(shape: Shape, rows: int, device: torch.device) -> Call:
    out, streams, post, comb = (x.float() for x in _written(shape, rows, device))
    return lambda: hyper_twins.hc_post(out, streams, post, comb, num=OFFICIAL)


def _build_hc_next(shape: Shape, rows: int, device: torch.device) -> Call:
    written, w = _written(shape, rows, device), _hyper_weights(shape, device)
    return lambda: hc_next(*written, w)


def _twin_hc_next(shape: Shape, rows: int, device: torch.device) -> Call:
    out, streams, post, comb = (x.float() for x in _written(shape, rows, device))
    w = _hyper_weights(shape, device)
    w = w._replace(fn=w.fn.t())
    return lambda: hyper_twins.hc_next(out, streams, post, comb, w, num=OFFICIAL)


def _build_lm_head(shape: Shape, rows: int, device: torch.device) -> Call:
    streams, w = _streams(shape, rows, device), _lm_head_weights(shape, device)
    return lambda: lm_head(streams, w)


def _twin_lm_head(shape: Shape, rows: int, device: torch.device) -> Call:
    streams, w = _streams(shape, rows, device).float(), _lm_head_weights(shape, device)
    w = w._replace(fn=w.fn.t(), lm_head=w.lm_head.float().t())
    return lambda: hyper_twins.lm_head(streams, w, num=OFFICIAL)


def _build_project(shape: Shape, rows: int, index_heads: int, device: torch.device) -> Call:
    x, freqs_cis = random(device, rows, shape.hidden_size).bfloat16(), _freqs_cis(shape, rows, device)
    w = _project_weights(shape, index_heads, device)
    return lambda: project(x, freqs_cis, w)


def _twin_project(shape: Shape, rows: int, index_heads: int, device: torch.device) -> Call:
    x, freqs_cis = random(device, rows, shape.hidden_size).bfloat16().float(), _freqs_cis(shape, rows, device)
    w, complex_freqs_cis = _project_weights(shape, index_heads, device), torch.view_as_complex(freqs_cis)
    w = w._replace(w_in=fp8_values(w.w_in), wq_b=fp8_values(w.wq_b))
    return lambda: project_twins.project(x, complex_freqs_cis, w, num=OFFICIAL)


def _build_output(shape: Shape, rows: int, device: torch.device) -> Call:
    o, w = _attended(shape, rows, device), _output_weights(shape, device)
    return lambda: output(o, w)


def _twin_output(shape: Shape, rows: int, device: torch.device) -> Call:
    o, w = _attended(shape, rows, device).float(), _output_weights(shape, device)
    w = w._replace(wo_a=fp8_values(w.wo_a), wo_b=fp8_values(w.wo_b))
    return lambda: project_twins.output(o, w, num=OFFICIAL)


def _library(rows: int, products: list[tuple[int, int]], device: torch.device) -> Call:
    """The products alone, in bf16 with weights in bf16."""
    pairs = [
        (random(device, rows, depth).bfloat16(), random(device, width, depth).bfloat16()) for depth, width in products
    ]

    def multiply() -> None:
        for x, weight in pairs:
            F.linear(x, weight)

    return multiply


def _streams(shape: Shape, rows: int, device: torch.device) -> Tensor:
    return random(device, rows, shape.hc_mult, shape.hidden_size).bfloat16()


def _written(shape: Shape, rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    m, out = shape.hc_mult, random(device, rows, shape.hidden_size).bfloat16()
    return out, _streams(shape, rows, device), random(device, rows, m), random(device, rows, m, m)


def _attended(shape: Shape, rows: int, device: torch.device) -> Tensor:
    return random(device, rows, shape.num_attention_heads, shape.head_dim).bfloat16()


def _hyper_weights(shape: Shape, device: torch.device) -> HyperWeights:
    m, d = shape.hc_mult, shape.hidden_size
    outs = (2 + m) * m
    fn, base = random(device, outs, m * d) * (m * d) ** -0.5, random(device, outs)
    return HyperWeights(fn, base, random(device, d), shape.hc_sinkhorn_iters, EPS, EPS)


def _lm_head_weights(shape: Shape, device: torch.device) -> LMHeadWeights:
    m, d = shape.hc_mult, shape.hidden_size
    fn, table = random(device, m, m * d) * (m * d) ** -0.5, random(device, shape.vocab_size, d) * d**-0.5
    return LMHeadWeights(fn, random(device, m), random(device, d), table.bfloat16(), EPS, EPS)


def _project_weights(shape: Shape, index_heads: int, device: torch.device) -> Any:
    dim, rank = shape.head_dim, shape.q_lora_rank
    queries = shape.num_attention_heads * dim + index_heads * shape.index_head_dim
    turning = hadamard_matrix(shape.index_head_dim).to(device) if index_heads else torch.zeros(0, 0, device=device)
    w_in, wq_b = fp8(device, rank + dim, shape.hidden_size), fp8(device, queries, rank)
    norms = random(device, rank), random(device, dim)
    return ProjectWeights(w_in, *norms, wq_b, turning, shape.num_attention_heads, index_heads, True, EPS)  # type: ignore[arg-type]


def _output_weights(shape: Shape, device: torch.device) -> Any:
    groups, rank = shape.o_groups, shape.o_lora_rank
    wo_a = fp8(device, groups, rank, shape.num_attention_heads * shape.head_dim // groups)
    return OutputWeights(wo_a, fp8(device, shape.hidden_size, groups * rank))  # type: ignore[arg-type]


def _freqs_cis(shape: Shape, rows: int, device: torch.device) -> Tensor:
    return rope_table(torch.arange(rows, device=device), _freqs(shape, device))


def _freqs(shape: Shape, device: torch.device) -> Tensor:
    return rope_frequencies(shape.qk_rope_head_dim, 10_000.0, None).to(device)


def _fp8_bytes(num_weights: int) -> int:
    return num_weights + num_weights // 128
