"""The attention state of live sequences: pages of compressed history, and tails of fixed size (V4 spec 3).

Owns the tensors of the page pool and the tail slots; who holds which is the scheduler's. A page holds the compressed rows of `page_tokens` tokens in every layer; a tail
holds the window rings and the open compressor blocks. Both are addressed by position, so whatever lies past a
sequence's position is scratch, and taking tokens back is changing a number. Knows nothing of scheduling.
"""

import contextlib
import math
import mmap
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import EngineError
from engine.numerics import Numerics
from kernels.cache import RowFormat

MAX_DRAFTS = 16  # tokens that may be taken back: rings are this much longer than what a query reads


@dataclass
class LayerCache:
    """State of one layer. Rows are float32 that carry the rounding of their format."""

    number: int
    ratio: int
    ring: Tensor  # [slots, ring_tokens, head_dim]
    row_format: RowFormat
    rows: Tensor | None = None  # [pages * rows_per_page, head_dim]
    index_format: RowFormat | None = None
    index_rows: Tensor | None = None  # [pages * rows_per_page, index_head_dim]
    blocks: Tensor | None = None  # [slots, block_ring, 2 * width]: values, then gates with ape added


class Cache:
    """All layers' state for `num_pages` pages and `num_slots` live sequences. The MTP block's ring comes last."""

    def __init__(self, config: ModelConfig, numerics: Numerics, page_tokens: int, num_pages: int, num_slots: int):
        if page_tokens % 128:
            raise EngineError(f"page_tokens={page_tokens} is not a multiple of 128, the longest compressed block")
        self.page_tokens, self.num_pages, self.num_slots = page_tokens, num_pages, num_slots
        self.window, self.num_layers = config.sliding_window, config.num_hidden_layers
        self.ring_tokens = self.window + MAX_DRAFTS
        rounds = numerics.rounds_rows
        key = RowFormat(config.head_dim, config.qk_rope_head_dim, "key" if rounds else "float32")
        index = RowFormat(config.index_head_dim, 0, "index" if rounds else "float32")
        num_rings = config.num_hidden_layers + config.has_mtp
        self.layers = [self._layer(config, i, key, index) for i in range(num_rings)]

    def _layer(self, config: ModelConfig, number: int, key: RowFormat, index: RowFormat) -> LayerCache:
        ratio = config.ratio(number)
        layer = LayerCache(number, ratio, _zeros(self.num_slots, self.ring_tokens, config.head_dim), key)
        if ratio == 0:
            return layer
        num_rows = self.num_pages * (self.page_tokens // ratio)
        layer.rows = _zeros(num_rows, key.dim)
        width = config.head_dim
        if ratio == 4:
            layer.index_format = index
            layer.index_rows = _zeros(num_rows, index.dim)
            width = 2 * (config.head_dim + config.index_head_dim)
        layer.blocks = _zeros(self.num_slots, block_ring(ratio), 2 * width)
        return layer

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold the history of `num_tokens` tokens."""
        return -(-num_tokens // self.page_tokens)


def _zeros(*shape: int) -> Tensor:
    """Zeros that cost memory only once written (torch would touch every page), in large pages of memory where there are any."""
    num_bytes = max(4 * math.prod(shape), 1)
    memory = mmap.mmap(-1, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(memory, np.float32, math.prod(shape)).reshape(shape))


def block_ring(ratio: int) -> int:
    """Tokens of compressor input kept per slot: the previous block (ratio 4), the open one, and the drafts."""
    return (8 if ratio == 4 else ratio) + MAX_DRAFTS


def page_bytes(config: ModelConfig, page_tokens: int) -> int:
    """Bytes in memory of one page over all layers."""
    widths = {0: 0, 4: config.head_dim + config.index_head_dim, 128: config.head_dim}
    ratios = [config.ratio(layer) for layer in range(config.num_hidden_layers)]
    return sum(page_tokens // ratio * widths[ratio] * 4 for ratio in ratios if ratio)
