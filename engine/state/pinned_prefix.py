"""The pinned prefix: a sequence's first pages as rows before rotation, which a roll can put in another place.

Attention depends on relative positions alone, and a shift by whole blocks leaves every block what it was (V4 spec 3.5).
So rows rotated to the new place are what encoding the prefix there would give, up to rounding.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from holdfast.engine.state.cache import Cache, LayerCache
from holdfast.kernels.rows import Rows


@dataclass
class PinnedPrefix:
    """Rows of the first `num_tokens` tokens by layer number, float32, neither rotated nor rounded.

    `rows` [num_tokens / ratio, head_dim]; `index_rows` [num_tokens / ratio, index_head_dim], or [0, 0] without an
    indexer.
    """

    num_tokens: int
    rows: dict[int, Tensor]
    index_rows: dict[int, Tensor]

    @classmethod
    def empty(cls, cache: Cache, num_tokens: int) -> "PinnedPrefix":
        rows: dict[int, Tensor] = {}
        index_rows: dict[int, Tensor] = {}
        for number, layer in enumerate(cache.layers):
            if layer.keys is not None:
                index_dim = 0 if layer.index_keys is None else layer.index_keys.fmt.dim
                count = num_tokens // layer.ratio
                rows[number] = torch.zeros(count, layer.keys.fmt.dim, device=cache.device)
                index_rows[number] = torch.zeros(count if index_dim else 0, index_dim, device=cache.device)
        return cls(num_tokens, rows, index_rows)

    def rows_of(self, step: Rows, start: int, stop: int) -> Rows:
        """Of a sequence's rows start ... stop - 1 of a step those in the prefix, which is their page table."""
        stop = min(stop, start + self.num_tokens - int(step.positions[start]))
        pages = np.arange(self.num_tokens // step.page_tokens, dtype=np.int64)[None]
        segment = int(np.searchsorted(step.starts, start))
        bounds, none = np.array([start, stop], np.int64), np.zeros(1, np.int64)
        return step._replace(starts=bounds, slots=step.slots[segment : segment + 1], dropped=none, pages=pages)

    def part(self, layer: LayerCache, page: int, count: int, page_tokens: int) -> dict[str, Tensor]:
        """The first `count` rows of one page in one layer, by kind; none for a page behind the prefix."""
        start = page * page_tokens // layer.ratio
        kinds = {"head_rows": self.rows[layer.number], "head_index_rows": self.index_rows[layer.number]}
        return {kind: rows[start : start + count] for kind, rows in kinds.items() if start < len(rows)}
