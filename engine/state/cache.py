"""The attention state of live sequences: pages of compressed history, and tails of fixed size (V4 spec 3).

Owns the tensors of the page pool and the tail slots; the scheduler assigns them to sequences. A page holds the
compressed rows of `page_tokens` tokens in every layer; a tail holds the window rings and the open compressor blocks.
Both are addressed by position, so rows past a sequence's position are scratch, and taking tokens back is changing a
number. Knows nothing of scheduling.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.errors import EngineError
from holdfast.engine.numerics import Numerics
from holdfast.engine.placement import CPU, Placement
from holdfast.engine.state.pools import FloatPool, Pool, zeros
from holdfast.kernels.cache import RowFormat
from holdfast.kernels.gpu.pools import pool_stride

MAX_DRAFTS = 16  # tokens that may be taken back: rings are this much longer than what a query reads


@dataclass
class LayerCache:
    """State of one layer. `ring` and `blocks` are addressed by slot and position, pools by page.

    On a CPU all is float32, rows carry the rounding of their format; on a GPU the ring is bf16, which holds the same
    values.
    """

    number: int
    ratio: int
    row_format: RowFormat
    ring: Tensor  # [slots, ring_tokens, head_dim]
    keys: Pool | None = None  # entries, of head_dim channels
    index_keys: Pool | None = None  # index keys, of index_head_dim channels
    blocks: Tensor | None = None  # [slots, block_ring, 2 * width]: values, then gates with ape added

    @property
    def pools(self) -> list[Pool]:
        return [pool for pool in (self.keys, self.index_keys) if pool is not None]


class Cache:
    """All layers' state for `num_pages` pages and `num_slots` live sequences. The MTP block's ring comes last."""

    def __init__(
        self,
        config: ModelConfig,
        numerics: Numerics,
        page_tokens: int,
        num_pages: int,
        num_slots: int,
        placement: Placement = CPU,
    ):
        if page_tokens % 128:
            raise EngineError(f"page_tokens={page_tokens} is not a multiple of 128, the longest compressed block")
        self.page_tokens, self.num_pages, self.num_slots = page_tokens, num_pages, num_slots
        self.window, self.num_layers = config.sliding_window, config.num_hidden_layers
        self.ring_tokens = self.window + MAX_DRAFTS
        self.placement, self.device = placement, placement.device
        self.key, self.index = row_formats(config, numerics.rounds_rows)
        num_rings = config.num_hidden_layers + config.has_mtp
        self.layers = [self._layer(config, number) for number in range(num_rings)]

    def _layer(self, config: ModelConfig, number: int) -> LayerCache:
        ratio = config.ratio(number)
        ring = self._tensor(torch.bfloat16, self.num_slots, self.ring_tokens, config.head_dim)
        layer = LayerCache(number, ratio, self.key, ring)
        if ratio == 0:
            return layer
        layer.keys = self._pool("rows", self.key, ratio)
        width = config.head_dim
        if ratio == 4:
            layer.index_keys = self._pool("index_rows", self.index, ratio)
            width = 2 * (config.head_dim + config.index_head_dim)
        layer.blocks = self._tensor(torch.float32, self.num_slots, block_ring(ratio), 2 * width)
        return layer

    def _tensor(self, packed_dtype: torch.dtype, *shape: int) -> Tensor:
        if self.placement.runs_triton:
            return torch.zeros(shape, dtype=packed_dtype, device=self.device)
        return zeros(*shape)

    def _pool(self, kind: str, fmt: RowFormat, ratio: int) -> Pool:
        per_page = self.page_tokens // ratio
        if self.placement.runs_triton:
            from holdfast.engine.state.packed_pool import PackedPool

            return PackedPool(kind, fmt, per_page, self.num_pages, self.device)
        return FloatPool(kind, fmt, per_page, self.num_pages)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold the history of `num_tokens` tokens."""
        return -(-num_tokens // self.page_tokens)


def row_formats(config: ModelConfig, rounds_rows: bool = True) -> tuple[RowFormat, RowFormat]:
    """The formats of key rows and of index keys."""
    return (
        RowFormat(config.head_dim, config.qk_rope_head_dim, "key" if rounds_rows else "float32"),
        RowFormat(config.index_head_dim, 0, "index" if rounds_rows else "float32"),
    )


def block_ring(ratio: int) -> int:
    """Tokens of compressor input kept per slot: the previous block (ratio 4), the open one, and the drafts."""
    return (8 if ratio == 4 else ratio) + MAX_DRAFTS


def page_bytes(config: ModelConfig, page_tokens: int, placement: Placement = CPU) -> int:
    """Bytes in memory of one page over all layers."""
    key, index = row_formats(config)
    row, index_row = (pool_stride(key), pool_stride(index)) if placement.runs_triton else (4 * key.dim, 4 * index.dim)
    ratios = [config.ratio(layer) for layer in range(config.num_hidden_layers)]
    return sum(page_tokens // ratio * (row + index_row * (ratio == 4)) for ratio in ratios if ratio)
