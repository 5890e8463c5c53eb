"""One attention layer: queries, window rows, compression into pages, selection, output (V4 spec 2.4 - 2.8).

The layer kind is its ratio: 0 window only, 4 with an indexer that selects entries, 128 with all entries. Reads and
writes the cache through a batch's index tensors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.batch import Batch, BlockPlan, Group
from engine.cache import LayerCache
from engine.checkpoint import Checkpoint
from engine.config import ModelConfig
from engine.numerics import Numerics
from kernels.attention import ENTRY_TILE, sparse_attn
from kernels.compress import overlapping, pool_blocks
from kernels.gemm import grouped_linear, linear, pad_rows
from kernels.indexer import index_scores, select_top
from kernels.norm import rms_norm
from kernels.quant import hadamard_matrix
from kernels.rope import rope_frequencies, rope_table, rotate_


class Attention:
    """`x` [N, D] in, [N, D] out; one shared key = value head of head_dim channels."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, config: ModelConfig, ratio: int, numerics: Numerics):
        self.config, self.ratio, self.numerics = config, ratio, numerics

        def weight(name: str) -> Tensor:
            return checkpoint.weight(prefix + name)

        self.w_in = torch.cat((weight("wq_a.weight"), weight("wkv.weight")))
        self.q_norm, self.kv_norm = weight("q_norm.weight"), weight("kv_norm.weight")
        self.wq_b = weight("wq_b.weight")
        self.wo_a = weight("wo_a.weight").unflatten(0, (config.o_groups, -1))
        self.wo_b = weight("wo_b.weight")
        self.attn_sink = weight("attn_sink")
        self.freqs = layer_frequencies(config, ratio)
        if ratio == 128:
            self.w_blocks = torch.cat((weight("compressor.wkv.weight"), weight("compressor.wgate.weight")))
            self.ape = weight("compressor.ape")
            self.entry_norm = weight("compressor.norm.weight")
        if ratio == 4:
            self._load_indexed(weight)

    def _load_indexed(self, weight) -> None:
        """Fuse the main and the indexer's compressor: channels [A main, A index, B main, B index], values then gates."""

        def halves(name: str, dim: int) -> Tensor:
            main, index = weight(f"compressor.{name}"), weight(f"indexer.compressor.{name}")
            a, b = (t.unflatten(dim, (2, -1)).unbind(dim) for t in (main, index))
            return torch.cat((a[0], b[0], a[1], b[1]), dim)

        proj = weight("indexer.weights_proj.weight")  # appended: it reads the same input
        self.index_weight_scale = (self.config.index_head_dim * self.config.index_n_heads) ** -0.5
        self.w_blocks = torch.cat((halves("wkv.weight", 0), halves("wgate.weight", 0)))
        self.ape = halves("ape", 1)
        self.entry_norm = weight("compressor.norm.weight")
        self.index_norm = weight("indexer.compressor.norm.weight")
        self.w_blocks = torch.cat((self.w_blocks, proj))
        self.wq_b = torch.cat((self.wq_b, weight("indexer.wq_b.weight")))
        self.hadamard = hadamard_matrix(self.config.index_head_dim)

    def __call__(self, x: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        config, num, eps = self.config, self.numerics, self.config.rms_norm_eps
        turns, inverse = batch.turns(self.ratio, self.freqs)
        mixed = num.bf16(linear(num.act(x), self.w_in))  # [N, q_lora_rank + head_dim]
        qr = num.bf16(rms_norm(mixed[:, : config.q_lora_rank], self.q_norm, eps))
        kv = num.bf16(rms_norm(mixed[:, config.q_lora_rank :], self.kv_norm, eps))
        kv = cache.row_format.round(num.bf16(rotate_(kv, turns)))
        projected = num.bf16(linear(num.act(qr), self.wq_b))  # [N, main heads | index heads]
        width = config.num_attention_heads * config.head_dim
        q, index_q = projected[:, :width].unflatten(1, (-1, config.head_dim)), projected[:, width:]
        q = num.head_norm(q, eps)
        q = num.bf16(rotate_(q, turns.unsqueeze(1)))  # [N, H, head_dim]
        images = [self._image(g, kv, cache) for g in batch.groups if g.image is not None]
        rows, places = batch.ring_writes
        cache.ring.view(-1, config.head_dim)[places] = kv[rows]
        head_weights = self._compress(x, batch, cache) if self.ratio else None
        index: tuple[Tensor, Tensor] | None = None
        if head_weights is not None and any(self._selects(batch, group) for group in batch.groups):
            index = self._index_queries(index_q, head_weights, turns, cache)
        parts = []
        for group in batch.groups:
            window = images.pop(0) if group.image is not None else cache.ring[group.slots]
            entries, mask = self._entries(index, batch, group, cache)
            parts.append(
                sparse_attn(
                    q[group.span], window, group.window_mask, entries, mask,
                    self.attn_sink, config.head_dim**-0.5, num.rounds_activations,
                )
            )  # fmt: skip
            if (padding := group.padding) > 0:
                parts.append(q.new_zeros(padding, *q.shape[1:]))
        out = torch.cat(parts) if len(parts) > 1 else parts[0]
        out = num.bf16(rotate_(num.bf16(out), inverse.unsqueeze(1)))
        low = num.bf16(grouped_linear(out.flatten(1).unflatten(1, (config.o_groups, -1)), self.wo_a))
        return num.bf16(linear(num.act(low), self.wo_b))

    def _image(self, group: Group, kv: Tensor, cache: LayerCache) -> Tensor:
        """Window rows of each tile of a stretch, [tiles, ring, head_dim], from the ring as it was and the new rows."""
        return torch.cat((cache.ring[group.slots[0]], kv[group.span]))[group.image]

    def _compress(self, x: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        """Add this step's rows to the block ring and write the entries that it completes.

        Returns the indexer's head weights [N, index heads], which come out of the same product (none for ratio 128).
        """
        assert cache.blocks is not None and cache.rows is not None
        width = self.ape.shape[1]
        mixed, head_weights = linear(x, self.w_blocks).tensor_split([2 * width], 1)  # values | gates | head weights
        mixed[:, width:] += self.ape[batch.phase(self.ratio)]
        ring = cache.blocks.view(-1, mixed.shape[1])
        plan = batch.blocks(self.ratio)
        if plan is not None:
            source = torch.where(plan.from_new, mixed[plan.new_rows], ring[plan.ring_rows])
            self._write_entries(source, plan, cache)
        rows, places = batch.block_writes(self.ratio)
        ring[places] = mixed[rows]
        return head_weights

    def _write_entries(self, source: Tensor, plan: BlockPlan, cache: LayerCache) -> None:
        """source [blocks, S, values | gates] -> rows of the pool."""
        assert cache.rows is not None
        values, gates = source.chunk(2, 2)
        if plan.missing is not None:
            gates = gates.masked_fill(plan.missing, float("-inf"))
        if self.ratio == 4:
            values, gates = overlapping(values), overlapping(gates)
        pooled, eps, num = pool_blocks(values, gates), self.config.rms_norm_eps, self.numerics
        turns = rope_table(plan.positions, self.freqs)
        entry = num.bf16(rms_norm(num.bf16(pooled[:, : self.config.head_dim]), self.entry_norm, eps))
        cache.rows[plan.destinations] = cache.row_format.round(num.bf16(rotate_(entry, turns)))
        if cache.index_rows is not None and cache.index_format is not None:
            key = num.bf16(rms_norm(num.bf16(pooled[:, self.config.head_dim :]), self.index_norm, eps))
            key = self._hadamard(num.bf16(rotate_(key, turns)))
            cache.index_rows[plan.destinations] = cache.index_format.round(key)

    def _hadamard(self, rows: Tensor) -> Tensor:
        """Rows [..., d] times the orthonormal Hadamard matrix, whole row tiles at a time."""
        flat = rows.reshape(-1, rows.shape[-1])
        padded = F.pad(flat, (0, 0, 0, pad_rows(len(flat)) - len(flat)))
        return self.numerics.bf16(linear(padded, self.hadamard)[: len(flat)].view_as(rows))

    def _selects(self, batch: Batch, group: Group) -> bool:
        """Whether some row of the group sees more entries than it may attend to."""
        return self.ratio == 4 and batch.visible(group, self.ratio)[1] > self.config.index_topk

    def _index_queries(
        self, projected: Tensor, head_weights: Tensor, turns: Tensor, cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        """The indexer's queries [N, index heads, index_head_dim] and head weights [N, index heads] of all rows."""
        num = self.numerics
        assert cache.index_format is not None
        q = rotate_(projected.unflatten(1, (-1, self.config.index_head_dim)), turns.unsqueeze(1))
        q = self._hadamard(num.bf16(q))
        if num.rounds_activations:
            q = cache.index_format.round(q)
        return q, num.bf16(head_weights) * self.index_weight_scale

    def _entries(
        self, index: tuple[Tensor, Tensor] | None, batch: Batch, group: Group, cache: LayerCache
    ) -> tuple[Tensor | None, Tensor | None]:
        """The compressed entries that the group's rows attend to, and their mask; see `sparse_attn`."""
        if self.ratio == 0 or cache.rows is None:
            return None, None
        if self._selects(batch, group):
            assert index is not None
            rows, mask = self._select(*index, batch, group, cache)
        else:
            rows, mask = batch.first_entries(group, self.ratio)
        return cache.rows[rows], mask

    def _select(
        self, q: Tensor, weights: Tensor, batch: Batch, group: Group, cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        """Pool rows [rows, K] of the index_topk best entries of each row and the mask [rows, K], K in entry tiles."""
        assert cache.index_rows is not None
        k, num = self.config.index_topk, self.numerics
        visible, _ = batch.visible(group, self.ratio)
        rows = torch.zeros(group.rows, -(-k // ENTRY_TILE) * ENTRY_TILE, dtype=torch.int64)
        counts = torch.zeros_like(rows, dtype=torch.bool)
        for segment in group.segments:
            part = group.span if group.image is not None else slice(segment.start, segment.start + segment.count)
            at = slice(part.start - group.start, part.stop - group.start)
            keys = cache.index_rows[batch.page_rows(segment.seq, int(visible[at].max()), self.ratio)]
            scores = num.bf16(index_scores(q[part], keys, weights[part]))
            entry, valid = select_top(scores, visible[at], k)
            rows[at, :k] = batch.pool_rows(segment.seq, entry.flatten(), self.ratio).view_as(entry)
            counts[at, :k] = valid
        return rows, torch.where(counts, 0.0, float("-inf"))


def layer_frequencies(config: ModelConfig, ratio: int) -> Tensor:
    """All rotary angles of a layer use one base: plain for window-only layers, YaRN for compressed ones (spec 2.4)."""
    if ratio == 0:
        return rope_frequencies(config.qk_rope_head_dim, config.rope_theta, None)
    yarn = (config.rope_factor, config.beta_fast, config.beta_slow, config.original_max_position_embeddings)
    return rope_frequencies(config.qk_rope_head_dim, config.compress_rope_theta, yarn)
