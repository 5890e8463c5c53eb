"""One attention layer: queries, window rows, compression into pages, selection, output (V4 spec 2.4 - 2.8).

The layer kind is its ratio: 0 window only, 4 with an indexer that selects entries, 128 with all entries. Rows of this
step reach the rings only after they were attended to: the ops read them where they were computed.
"""

from typing import Any

import torch
from torch import Tensor

from engine.batch import Batch
from engine.cache import LayerCache
from engine.checkpoint import Checkpoint
from engine.config import ModelConfig
from engine.numerics import Numerics
from kernels.attention import AttendWeights
from kernels.compress import CompressWeights
from kernels.dispatch import Ops
from kernels.project import OutputWeights, ProjectWeights
from kernels.quant import hadamard_matrix
from kernels.rope import rope_frequencies, rope_table, rotate_


class Attention:
    """`x` [N, D] in, [N, D] out; one shared key = value head of head_dim channels."""

    def __init__(
        self, checkpoint: Checkpoint, prefix: str, config: ModelConfig, ratio: int, numerics: Numerics, ops: Ops
    ):
        self.ops, self.ratio, self.index_topk = ops, ratio, config.index_topk

        def weight(name: str) -> Tensor:
            return checkpoint.weight(prefix + name)

        is_indexed = ratio == 4
        wq_b, hadamard = weight("wq_b.weight"), torch.zeros(0, 0)
        if is_indexed:
            wq_b = torch.cat((wq_b, weight("indexer.wq_b.weight")))
            hadamard = hadamard_matrix(config.index_head_dim)
        w_in = torch.cat((weight("wq_a.weight"), weight("wkv.weight")))
        frequencies = layer_frequencies(config, ratio)
        self.freqs = ops.array(frequencies)
        self.project = ops.weights(
            ProjectWeights(
                w_in.t(), weight("q_norm.weight"), weight("kv_norm.weight"), wq_b.t(), hadamard,
                config.num_attention_heads, config.index_n_heads if is_indexed else 0,
                numerics.rounds_rows, config.rms_norm_eps,
            )
        )  # fmt: skip
        self.attend = ops.weights(
            AttendWeights(weight("attn_sink"), config.head_dim**-0.5, config.sliding_window, ratio)
        )
        wo_a = weight("wo_a.weight").unflatten(0, (config.o_groups, -1))
        self.output = ops.weights(OutputWeights(wo_a.transpose(1, 2), weight("wo_b.weight").t()))
        self.no_rows = ops.array(torch.zeros(0, config.head_dim))
        self.no_index_rows = ops.array(torch.zeros(0, 0))
        if ratio:
            parts = _indexed_parts(weight) if is_indexed else _pooled_parts(weight)
            index_scale = (config.index_head_dim * config.index_n_heads) ** -0.5
            self.compress = ops.weights(
                CompressWeights(
                    *parts, hadamard, frequencies, ratio, is_indexed, index_scale, numerics.rounds_rows,
                    config.rms_norm_eps,
                )
            )  # fmt: skip
            self.hadamard, self.frequencies = hadamard, frequencies
            # neither rotated nor rounded
            as_they_are = {"freqs": torch.zeros_like(frequencies), "hadamard": torch.eye(len(hadamard))}
            bundle = {name: ops.array(value) for name, value in as_they_are.items()}
            self.compress_head = self.compress._replace(**bundle, rounds_rows=False)

    def __call__(self, x: Any, batch: Batch, cache: LayerCache) -> Any:
        ops, rows = self.ops, batch.rows
        turns = batch.turns(ops, self.ratio, self.freqs)
        q, kv, index_q = ops.project(x, turns, self.project)
        pool, chosen = self._entries(x, index_q, batch, cache) if self.ratio else (self.no_rows, None)
        ring = ops.array(cache.ring)
        o = ops.attend(q, kv, rows, ring, pool, chosen, self.attend)
        ops.store(kv, rows, ring)
        return ops.output(o, turns, self.output)

    def _entries(self, x: Any, index_q: Any, batch: Batch, cache: LayerCache) -> tuple[Any, Any]:
        """Complete this step's blocks: the pool of entries, and which of them each row attends to (None: all it may see)."""
        assert cache.keys is not None and cache.blocks is not None
        ops, rows = self.ops, batch.rows
        pool, blocks = ops.array(cache.keys.rows), ops.array(cache.blocks)
        index_pool = self.no_index_rows if cache.index_keys is None else ops.array(cache.index_keys.rows)
        mixed, head_weights = ops.block_rows(x, rows, self.compress)
        ops.complete_blocks(mixed, rows, blocks, pool, index_pool, self.compress)
        for head, head_rows in batch.heads:
            head_pools = ops.array(head.rows[cache.number]), ops.array(head.index_rows[cache.number])
            ops.complete_blocks(mixed, head_rows, blocks, *head_pools, self.compress_head)
        ops.store(mixed, rows, blocks)
        if self.ratio != 4 or batch.most_visible(self.ratio) <= self.index_topk:
            return pool, None
        return pool, ops.select(index_q, head_weights, rows, index_pool, self.ratio, self.index_topk)

    def moved(self, rows: Tensor, index_rows: Tensor, first: int, cache: LayerCache) -> tuple[Tensor, Tensor]:
        """Rows of a pinned head as they are stored when its first token stands at position `first`."""
        turns = rope_table(first + torch.arange(len(rows)) * self.ratio, self.frequencies)
        keys = cache.row_format.round(rotate_(rows.clone(), turns))
        if cache.index_keys is None:
            return keys, index_rows
        return keys, cache.index_keys.fmt.round(rotate_(index_rows.clone(), turns) @ self.hadamard)


def _pooled_parts(weight) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w_blocks, ape, entry_norm and index_norm of a layer without an indexer."""
    w_blocks = torch.cat((weight("compressor.wkv.weight"), weight("compressor.wgate.weight")))
    return w_blocks.t(), weight("compressor.ape"), weight("compressor.norm.weight"), torch.zeros(0)


def _indexed_parts(weight) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The main and the indexer's compressor as one, and the head weights, which read the same input (see CompressWeights)."""

    def halves(name: str, dim: int) -> Tensor:
        main, index = weight(f"compressor.{name}"), weight(f"indexer.compressor.{name}")
        a, b = (t.unflatten(dim, (2, -1)).unbind(dim) for t in (main, index))
        return torch.cat((a[0], b[0], a[1], b[1]), dim)

    w_blocks = torch.cat((halves("wkv.weight", 0), halves("wgate.weight", 0), weight("indexer.weights_proj.weight")))
    return (
        w_blocks.t(),
        halves("ape", 1),
        weight("compressor.norm.weight"),
        weight("indexer.compressor.norm.weight"),
    )


def layer_frequencies(config: ModelConfig, ratio: int) -> Tensor:
    """All rotary angles of a layer use one base: plain for window-only layers, YaRN for compressed ones (spec 2.4)."""
    if ratio == 0:
        return rope_frequencies(config.qk_rope_head_dim, config.rope_theta, None)
    yarn = (config.rope_factor, config.beta_fast, config.beta_slow, config.original_max_position_embeddings)
    return rope_frequencies(config.qk_rope_head_dim, config.compress_rope_theta, yarn)
