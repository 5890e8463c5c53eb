"""Rows of several sequences at awkward places, with a layer's state as twins and as kernels hold it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from holdfast.kernels.cache import RowFormat
from holdfast.kernels.gpu.pools import pool_stride
from holdfast.kernels.gpu.rows import DeviceRows, to_device
from holdfast.kernels.rows import Rows

PAGE_TOKENS = 128
NAN_BYTE = 0xFF  # as e4m3, as half of a bf16 and as an e8m0 scale


@dataclass(frozen=True)
class Segment:
    first: int  # position of its first row
    num_rows: int
    dropped: int = 0


def make_rows(segments: list[Segment], seed: int = 0) -> Rows:
    """Pages in no order, slots in no order."""
    rng = np.random.default_rng(seed)
    positions = np.concatenate([np.arange(s.first, s.first + s.num_rows) for s in segments])
    num_pages = max(-(-(s.first + s.num_rows - s.dropped) // PAGE_TOKENS) for s in segments)
    pages = rng.permutation(len(segments) * num_pages).reshape(len(segments), num_pages)
    return Rows(
        rng.integers(0, 100, len(positions)),
        positions,
        np.concatenate(([0], np.cumsum([s.num_rows for s in segments]))),
        rng.permutation(len(segments)),
        np.array([s.dropped for s in segments]),
        pages,
        PAGE_TOKENS,
    )


def device_rows(rows: Rows, device: torch.device, num_padding: int = 0) -> DeviceRows:
    """With rows and segments that a captured graph has, but this step has not."""
    step = to_device(rows, device)
    if not num_padding:
        return step

    def padded(tensor: Tensor, value: int) -> Tensor:
        return torch.cat((tensor, tensor.new_full((num_padding, *tensor.shape[1:]), value)))

    last = int(rows.starts[-1])
    return DeviceRows(
        padded(step.ids, 0),
        padded(step.positions, 0),
        padded(step.owners, -1),
        padded(step.starts, last),
        padded(step.slots, 0),
        padded(step.dropped, 0),
        padded(step.pages, 0),
        step.page_tokens,
    )


def one_segment(rows: Rows, segment: int, start: int, end: int) -> Rows:
    """Rows start ... end of a segment as a separate step."""
    own = slice(rows.starts[segment] + start, rows.starts[segment] + end)
    pick = slice(segment, segment + 1)
    starts = np.array([0, end - start])
    return Rows(
        rows.ids[own],
        rows.positions[own],
        starts,
        rows.slots[pick],
        rows.dropped[pick],
        rows.pages[pick],
        rows.page_tokens,
    )


def key_pool(values: Tensor, fmt: RowFormat) -> Tensor:
    """Rows float32 [n, dim] that carry the rounding of their format -> a pool as kernels hold it."""
    pool = torch.full((len(values), pool_stride(fmt)), NAN_BYTE, dtype=torch.uint8, device=values.device)
    pool[:, : fmt.width] = fmt.pack(values.cpu()).to(values.device)
    return pool


def planes(page: Tensor, fmt: RowFormat) -> tuple[Tensor, Tensor]:
    """Codes and scales of a page of index keys uint8 [n, width], where they are."""
    codes, scales = page.view(-1).split([len(page) * fmt.dim // 2, len(page) * fmt.dim // 32])
    return codes.view(len(page), -1), scales.view(len(page), -1)


def index_pool(values: Tensor, fmt: RowFormat, per_page: int) -> Tensor:
    stored = fmt.pack(values.cpu()).to(values.device)
    pool = torch.empty_like(stored)
    for rows, page in zip(stored.split(per_page), pool.split(per_page)):
        codes, scales = planes(page, fmt)
        codes[:], scales[:] = rows.tensor_split([fmt.dim // 2], 1)
    return pool
