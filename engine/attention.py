"""One attention layer: queries, window rows, compression into pages, selection, output (V4 spec 2.4 - 2.8).

The layer kind is its ratio: 0 window only, 4 with an indexer that selects entries, 128 with all entries. Rows of this
step reach the rings only after they were attended to: the ops read them where they were computed.
"""

from typing import Any

import torch
from torch import Tensor

from holdfast.engine.batch import Step
from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.numerics import Numerics
from holdfast.engine.state.cache import LayerCache
from holdfast.engine.weights import Part, Weights
from holdfast.kernels.attention import AttendWeights
from holdfast.kernels.compress import CompressWeights
from holdfast.kernels.dispatch import Ops
from holdfast.kernels.project import OutputWeights, ProjectWeights
from holdfast.kernels.quant import hadamard_matrix
from holdfast.kernels.rope import rope_frequencies, rope_table, rotate_


class Attention:
    """`x` [N, D] in, [N, D] out; one shared key = value head of head_dim channels.

    A rank has some of the query heads and some columns of the output; window rows, entries and the indexer are the same
    on every rank.
    """

    def __init__(self, weights: Weights, config: ModelConfig, ratio: int, numerics: Numerics, ops: Ops):
        self.ops, self.ratio, self.index_topk = ops, ratio, config.index_topk
        self.parallel = weights.parallel
        is_indexed = ratio == 4
        hadamard = hadamard_matrix(config.index_head_dim) if is_indexed else torch.zeros(0, 0)
        frequencies = layer_frequencies(config, ratio)
        self.low_width, self.width = config.o_groups * config.o_lora_rank, config.hidden_size
        low = self.parallel.share(self.low_width)
        heads, dim = _heads_of(low, config), config.head_dim
        queries = [Part("wq_b.weight", rows=range(heads.start * dim, heads.stop * dim))]
        queries += [Part("indexer.wq_b.weight")] if is_indexed else []
        self.freqs = ops.array(frequencies)
        self.project = ops.weights(
            ProjectWeights(
                weights.linear("wq_a.weight", "wkv.weight"),
                weights.value("q_norm.weight"),
                weights.value("kv_norm.weight"),
                weights.linear(*queries),
                hadamard,
                len(heads),
                config.index_n_heads if is_indexed else 0,
                numerics.rounds_rows,
                config.rms_norm_eps,
            )
        )
        self.attend = ops.weights(
            AttendWeights(weights.value("attn_sink", heads), dim**-0.5, config.sliding_window, ratio)
        )
        self.output = ops.weights(
            OutputWeights(
                weights.grouped_linear(Part("wo_a.weight", low), len(heads) // _group_size(config)),
                weights.linear(Part("wo_b.weight", self.parallel.share(self.width))),
            )
        )
        self.no_rows = ops.array(torch.zeros(0, dim))
        self.no_index_rows = ops.array(torch.zeros(0, 0))
        if ratio:
            parts = _indexed_parts(weights, config) if is_indexed else _pooled_parts(weights)
            index_scale = (config.index_head_dim * config.index_n_heads) ** -0.5
            self.compress = ops.weights(
                CompressWeights(
                    *parts,
                    hadamard,
                    frequencies,
                    ratio,
                    is_indexed,
                    index_scale,
                    numerics.rounds_rows,
                    config.rms_norm_eps,
                )
            )
            self.hadamard, self.frequencies = hadamard, frequencies
            # neither rotated nor rounded
            as_they_are = {"freqs": torch.zeros_like(frequencies), "hadamard": torch.eye(len(hadamard))}
            bundle = {name: ops.array(value) for name, value in as_they_are.items()}
            self.compress_prefix = self.compress._replace(**bundle, rounds_rows=False)

    def __call__(self, x: Any, batch: Step, cache: LayerCache) -> Any:
        ops, rows = self.ops, batch.rows
        freqs_cis = batch.freqs_cis(ops, self.ratio, self.freqs)
        q, kv, index_q = ops.project(x, freqs_cis, self.project)
        ring = ops.array(cache.ring)
        if self.ratio:
            pool, chosen, mixed, blocks = self._entries(x, index_q, batch, cache)
            o = ops.attend(q, kv, freqs_cis, rows, ring, pool, chosen, self.attend)
            ops.store(rows, (kv, ring), (mixed, blocks))
        else:
            o = ops.attend(q, kv, freqs_cis, rows, ring, self.no_rows, None, self.attend)
            ops.store(rows, (kv, ring))
        if self.parallel.ranks == 1:
            return ops.output(o, self.output)
        low = self.parallel.columns(ops.output_low(o, self.output), self.low_width, ops)
        return self.parallel.columns(ops.output_columns(low, self.output), self.width, ops)

    def _entries(self, x: Any, index_q: Any, batch: Step, cache: LayerCache) -> tuple[Any, Any, Any, Any]:
        """Complete this step's blocks of tokens.

        Returns the pool of entries, which of them each row attends to (None: all it may see), what later blocks
        need of these rows, and the ring for that.
        """
        assert cache.keys is not None and cache.blocks is not None
        ops, rows = self.ops, batch.rows
        pool, blocks = ops.array(cache.keys.rows), ops.array(cache.blocks)
        index_pool = self.no_index_rows if cache.index_keys is None else ops.array(cache.index_keys.rows)
        mixed, head_weights = ops.block_rows(x, rows, self.compress)
        ops.complete_blocks(mixed, rows, blocks, pool, index_pool, self.compress)
        for prefix, prefix_rows in batch.prefix_rows:
            prefix_pools = ops.array(prefix.rows[cache.number]), ops.array(prefix.index_rows[cache.number])
            ops.complete_blocks(mixed, prefix_rows, blocks, *prefix_pools, self.compress_prefix)
        if self.ratio != 4 or batch.most_visible(self.ratio) <= self.index_topk:
            return pool, None, mixed, blocks
        chosen = ops.select(index_q, head_weights, rows, index_pool, self.ratio, self.index_topk)
        return pool, chosen, mixed, blocks

    def moved(self, rows: Tensor, index_rows: Tensor, first: int, cache: LayerCache) -> tuple[Tensor, Tensor]:
        """Rows of a pinned prefix as they are stored when its first token stands at position `first`."""
        freqs_cis = rope_table(first + torch.arange(len(rows)) * self.ratio, self.frequencies)
        keys = cache.row_format.round(rotate_(rows.cpu().clone(), freqs_cis))
        if cache.index_keys is None:
            return keys, index_rows
        return keys, cache.index_keys.fmt.round(rotate_(index_rows.cpu().clone(), freqs_cis) @ self.hadamard)


def _group_size(config: ModelConfig) -> int:
    return config.num_attention_heads // config.o_groups


def _heads_of(low: range, config: ModelConfig) -> range:
    """Those that these outputs of `wo_a` read: whole groups.

    Where ranks are more than groups, those of one group have the same.
    """
    size, rank = _group_size(config), config.o_lora_rank
    return range(low.start // rank * size, -(-low.stop // rank) * size)


def _pooled_parts(weights: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w_blocks, ape, entry_norm and index_norm of a layer without an indexer."""
    w_blocks = weights.linear("compressor.wkv.weight", "compressor.wgate.weight")
    return w_blocks, weights.value("compressor.ape"), weights.value("compressor.norm.weight"), torch.zeros(0)


def _indexed_parts(weights: Weights, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The main and the indexer's compressor as one, with the head weights, which read the same input."""
    prefixes = {"compressor.": config.head_dim, "indexer.compressor.": config.index_head_dim}

    def halves(name: str) -> list[Part]:
        return [
            Part(prefix + name, rows=range(half * dim, (half + 1) * dim))
            for half in range(2)
            for prefix, dim in prefixes.items()
        ]

    w_blocks = weights.linear(*halves("wkv.weight"), *halves("wgate.weight"), "indexer.weights_proj.weight")
    a, b = (weights.value(prefix + "ape").chunk(2, 1) for prefix in prefixes)
    ape = torch.cat((a[0], b[0], a[1], b[1]), 1)
    entry_norm, index_norm = (weights.value(prefix + "norm.weight") for prefix in prefixes)
    return w_blocks, ape, entry_norm, index_norm


def layer_frequencies(config: ModelConfig, ratio: int) -> Tensor:
    """All rotary angles of a layer use one base: plain for window-only layers, YaRN for compressed ones (spec 2.4)."""
    if ratio == 0:
        return rope_frequencies(config.qk_rope_head_dim, config.rope_theta, None)
    yarn = (config.rope_factor, config.beta_fast, config.beta_slow, config.original_max_position_embeddings)
    return rope_frequencies(config.qk_rope_head_dim, config.compress_rope_theta, yarn)
