"""Attention, selection, pooling, rings and pages."""

from collections.abc import Iterator

import torch
from torch import Tensor

from holdfast.kernels.attention import AttendWeights
from holdfast.kernels.bench.case import CONTEXTS, DECODE_ROWS, FLASH, PREFILL_ROWS, PRO, Call, Case, Shape
from holdfast.kernels.cache import RowFormat
from holdfast.kernels.compress import CompressWeights
from holdfast.kernels.gpu.attention import attend
from holdfast.kernels.gpu.compress import block_rows, complete_blocks, store
from holdfast.kernels.gpu.indexer import select
from holdfast.kernels.gpu.pages import gather_pages, scatter_pages
from holdfast.kernels.gpu.pools import pool_stride
from holdfast.kernels.gpu.rows import DeviceRows

PAGE_TOKENS = 256
RING = 144


def step(num_rows: int, context: int, device: torch.device) -> DeviceRows:
    """Decode: a row of each of num_rows sequences; prefill: num_rows of one.

    Sequences share pages, of which there are enough for one.
    """
    segments = num_rows if num_rows in DECODE_ROWS else 1
    each, pages = num_rows // segments, -(-(context + num_rows // segments) // PAGE_TOKENS)
    row = torch.arange(num_rows, device=device)
    return DeviceRows(
        row.int(),
        context + row % each,
        (row // each).int(),
        torch.arange(0, num_rows + 1, each, device=device, dtype=torch.int32),
        torch.arange(segments, device=device, dtype=torch.int32),
        torch.zeros(segments, device=device, dtype=torch.int64),
        torch.arange(pages, device=device, dtype=torch.int32).repeat(segments, 1),
        PAGE_TOKENS,
    )


def key_pool(rows: DeviceRows, ratio: int, shape: Shape, device: torch.device) -> Tensor:
    """Bytes that are e4m3 and bf16 below 2 in size, with scales of 2^-7."""
    fmt = RowFormat(shape.head_dim, shape.qk_rope_head_dim, "key")
    num_rows = rows.pages.shape[1] * (PAGE_TOKENS // ratio)
    pool = torch.randint(0x30, 0x3F, (num_rows, pool_stride(fmt)), dtype=torch.uint8, device=device)
    pool[:, shape.head_dim + shape.qk_rope_head_dim :] = 120
    return pool


def index_pool(rows: DeviceRows, ratio: int, shape: Shape, device: torch.device) -> Tensor:
    fmt = RowFormat(shape.index_head_dim, 0, "index")
    num_rows = rows.pages.shape[1] * (PAGE_TOKENS // ratio)
    return torch.randint(100, 128, (num_rows, fmt.width), dtype=torch.uint8, device=device)


def attend_case(shape: Shape, num_rows: int, context: int, ratio: int) -> Case:
    chosen = min(shape.index_topk, context // 4) if ratio == 4 else 0
    entries = chosen or (context // ratio if ratio else 0)
    keys = shape.sliding_window + entries
    key_bytes = pool_stride(RowFormat(shape.head_dim, shape.qk_rope_head_dim, "key"))
    shared = num_rows in PREFILL_ROWS and ratio != 4  # the rows of a chunk read the same entries
    rows_read = num_rows * shape.sliding_window * shape.head_dim * 2 + (1 if shared else num_rows) * entries * key_bytes
    queries = num_rows * shape.num_attention_heads * shape.head_dim

    def build(device: torch.device) -> Call:
        rows = step(num_rows, context, device)
        q = torch.randn(num_rows, shape.num_attention_heads, shape.head_dim, device=device).bfloat16()
        kv = torch.randn(num_rows, shape.head_dim, device=device).bfloat16()
        ring = torch.randn(len(rows.slots), RING, shape.head_dim, device=device).bfloat16()
        pool = key_pool(rows, ratio, shape, device) if ratio else torch.empty(0, 16, dtype=torch.uint8, device=device)
        choice = None
        if chosen:
            choice = (
                torch.randint(0, len(pool), (num_rows, shape.index_topk), device=device, dtype=torch.int32)
                .sort(1)
                .values
            )
        sink = torch.randn(shape.num_attention_heads, device=device)
        w = AttendWeights(sink, shape.head_dim**-0.5, shape.sliding_window, ratio)
        freqs_cis = torch.zeros(num_rows, shape.qk_rope_head_dim // 2, 2, device=device)
        return lambda: attend(q, kv, freqs_cis, rows, ring, pool, choice, w)

    def library(device: torch.device) -> Call:
        """As many gathered rows as there are keys, already in bf16."""
        q = torch.randn(num_rows, shape.num_attention_heads, 1, shape.head_dim, device=device).bfloat16()
        k = torch.randn(num_rows, 1, keys, shape.head_dim, device=device).bfloat16()
        k = k.expand(-1, shape.num_attention_heads, -1, -1)
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k)

    name = {0: "attend window", 4: "attend CSA", 128: "attend HCA"}[ratio]
    num_ops = queries * keys * 4
    fits = num_rows * keys < 1 << 21
    return Case(
        name, shape, num_rows, context, rows_read + 4 * queries, num_ops, build, None, library if fits else None
    )


def compressor(shape: Shape, ratio: int, device: torch.device) -> CompressWeights:
    """Random weights of a layer's compressor, of the main one and the indexer's together for ratio 4."""
    index_dim, num_heads = (shape.index_head_dim, shape.index_n_heads) if ratio == 4 else (0, 0)
    width = 2 * (shape.head_dim + index_dim) if ratio == 4 else shape.head_dim

    def random(*size: int) -> Tensor:
        return torch.randn(*size, device=device)

    return CompressWeights(
        random(2 * width + num_heads, shape.hidden_size).bfloat16(),
        random(ratio, width),
        random(shape.head_dim),
        random(index_dim),
        random(index_dim, index_dim),
        random(shape.qk_rope_head_dim // 2).double(),
        ratio,
        ratio == 4,
        0.01,
        True,
        1e-6,
    )


def pooling_cases(shape: Shape, num_rows: int, ratio: int) -> Iterator[Case]:
    """Products of a step's rows, the blocks that they complete, and the rings.

    Here each row completes a block; in most decode steps none does.
    """
    width = (2 * (shape.head_dim + shape.index_head_dim) if ratio == 4 else shape.head_dim) * 2
    outputs = width + (shape.index_n_heads if ratio == 4 else 0)
    context = CONTEXTS[0] - num_rows % ratio if num_rows in PREFILL_ROWS else CONTEXTS[0] - 1
    blocks = num_rows if num_rows in DECODE_ROWS else num_rows // ratio
    row_bytes = width * 4

    def inputs(device: torch.device) -> tuple[DeviceRows, Tensor, Tensor, CompressWeights]:
        rows = step(num_rows, context, device)
        mixed = torch.randn(num_rows, width, device=device)
        ring = torch.randn(len(rows.slots), (8 if ratio == 4 else ratio) + 16, width, device=device)
        return rows, mixed, ring, compressor(shape, ratio, device)

    def build_products(device: torch.device) -> Call:
        rows, _, _, w = inputs(device)
        x = torch.randn(num_rows, shape.hidden_size, device=device).bfloat16()
        return lambda: block_rows(x, rows, w)

    def library(device: torch.device) -> Call:
        x = torch.randn(num_rows, shape.hidden_size, device=device).bfloat16()
        w = torch.randn(outputs, shape.hidden_size, device=device).bfloat16()
        return lambda: x @ w.t()

    def build_blocks(device: torch.device) -> Call:
        rows, mixed, ring, w = inputs(device)
        keys = key_pool(rows, ratio, shape, device)
        index_keys = index_pool(rows, ratio, shape, device)
        return lambda: complete_blocks(mixed, rows, ring, keys, index_keys, w)

    def build_store(device: torch.device) -> Call:
        rows, mixed, ring, _ = inputs(device)
        kv = torch.randn(num_rows, shape.head_dim, device=device).bfloat16()
        window = torch.zeros(len(rows.slots), RING, shape.head_dim, device=device).bfloat16()
        return lambda: store(rows, (kv, window), (mixed, ring))

    weight_bytes = outputs * shape.hidden_size * 2
    name = "CSA" if ratio == 4 else "HCA"
    yield Case(
        f"block_rows {name}",
        shape,
        num_rows,
        0,
        weight_bytes + num_rows * (row_bytes + 2 * shape.hidden_size),
        2 * num_rows * outputs * shape.hidden_size,
        build_products,
        None,
        library,
    )
    slots = 8 if ratio == 4 else ratio
    yield Case(f"complete_blocks {name}", shape, num_rows, 0, blocks * slots * row_bytes, 0, build_blocks)
    yield Case(f"store {name}", shape, num_rows, 0, num_rows * (row_bytes + 2 * shape.head_dim) * 2, 0, build_store)


def select_case(shape: Shape, num_rows: int, context: int) -> Case:
    entries, width = context // 4, shape.index_head_dim // 2 + shape.index_head_dim // 32
    scored = entries if entries > shape.index_topk else 0
    key_lists = num_rows if num_rows in DECODE_ROWS else 1
    num_bytes = key_lists * scored * width + num_rows * (
        shape.index_n_heads * shape.index_head_dim * 2 + shape.index_topk * 4
    )

    def build(device: torch.device) -> Call:
        rows = step(num_rows, context, device)
        q = torch.randn(num_rows, shape.index_n_heads, shape.index_head_dim, device=device).bfloat16()
        weights = torch.randn(num_rows, shape.index_n_heads, device=device)
        pool = index_pool(rows, 4, shape, device)
        return lambda: select(q, weights, rows, pool, 4, shape.index_topk)

    def library(device: torch.device) -> Call:
        """Of scores that are there already."""
        scores = torch.randn(num_rows, entries, device=device)
        return lambda: torch.topk(scores, min(shape.index_topk, entries))

    num_ops = num_rows * scored * shape.index_n_heads * shape.index_head_dim * 2
    fits = num_rows * entries < 1 << 28
    return Case("select", shape, num_rows, context, num_bytes, num_ops, build, None, library if fits else None)


def page_cases(shape: Shape, num_tokens: int, fmt: RowFormat) -> Iterator[Case]:
    """Pages of so many tokens of a CSA layer, out of a pool of twice as many and back.

    The library copies whole rows.
    """
    per_page, num_pages = PAGE_TOKENS // 4, num_tokens // PAGE_TOKENS

    def inputs(device: torch.device) -> tuple[Tensor, Tensor]:
        pool = torch.zeros(2 * num_pages * per_page, pool_stride(fmt), dtype=torch.uint8, device=device)
        return pool, torch.randperm(2 * num_pages, device=device)[:num_pages].int()

    def build_gather(device: torch.device) -> Call:
        pool, pages = inputs(device)
        return lambda: gather_pages(pool, pages, fmt, per_page)

    def build_scatter(device: torch.device) -> Call:
        pool, pages = inputs(device)
        stored = torch.zeros(num_pages * per_page, fmt.width, dtype=torch.uint8, device=device)
        return lambda: scatter_pages(stored, pages, fmt, per_page, pool)

    def library(device: torch.device) -> Call:
        pool, pages = inputs(device)
        by_page, numbers = pool.view(2 * num_pages, -1), pages.long()
        return lambda: by_page[numbers]

    num_bytes = 2 * num_pages * per_page * fmt.width
    yield Case(f"gather_pages {fmt.kind}", shape, num_tokens, 0, num_bytes, 0, build_gather, None, library)
    yield Case(f"scatter_pages {fmt.kind}", shape, num_tokens, 0, num_bytes, 0, build_scatter)


def cases() -> Iterator[Case]:
    for num_pages in (1, 40):
        yield from page_cases(FLASH, num_pages * PAGE_TOKENS, RowFormat(FLASH.head_dim, FLASH.qk_rope_head_dim, "key"))
        yield from page_cases(FLASH, num_pages * PAGE_TOKENS, RowFormat(FLASH.index_head_dim, 0, "index"))
    for shape in (FLASH, PRO):
        for num_rows in DECODE_ROWS + PREFILL_ROWS:
            yield attend_case(shape, num_rows, CONTEXTS[0], 0)
            yield attend_case(shape, num_rows, CONTEXTS[0], 4)
            for context in CONTEXTS:
                yield attend_case(shape, num_rows, context, 128)
                yield select_case(shape, num_rows, context)
            yield from pooling_cases(shape, num_rows, 4)
            yield from pooling_cases(shape, num_rows, 128)
