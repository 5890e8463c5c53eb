"""The whole model: embedding, blocks of attention and experts around residual streams, vocabulary, MTP (V4 spec 2)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.engine.attention import Attention
from holdfast.engine.batch import Step
from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.checkpoint.tensors import Checkpoint
from holdfast.engine.columns import ALONE, Parallel
from holdfast.engine.moe import MoE
from holdfast.engine.numerics import Numerics
from holdfast.engine.placement import CPU, Placement
from holdfast.engine.state.cache import Cache, LayerCache
from holdfast.engine.state.pinned_prefix import PinnedPrefix
from holdfast.engine.weights import Part, Weights
from holdfast.kernels.dispatch import Ops
from holdfast.kernels.hyper import HyperWeights, LMHeadWeights
from holdfast.kernels.norm import rms_norm


def hyper_weights(weights: Weights, sublayer: str, config: ModelConfig) -> HyperWeights:
    """What one sublayer reads from the streams and how it writes back (spec 2.3), and its norm."""
    m, norm = config.hc_mult, weights.value(f"{sublayer}_norm.weight")
    fn, base, scale = (weights.value(f"hc_{sublayer}_{name}") for name in ("fn", "base", "scale"))
    fn = fn * torch.cat((scale[:1].expand(m), scale[1:2].expand(m), scale[2:].expand(m * m))).unsqueeze(1)
    return HyperWeights(weights.matrix(fn), base, norm, config.hc_sinkhorn_iters, config.hc_eps, config.rms_norm_eps)


class Block:
    """Attention, then experts, each inside its own hyper-connection; there is no other residual path."""

    def __init__(self, weights: Weights, config: ModelConfig, layer: int, numerics: Numerics, ops: Ops):
        self.ops = ops
        self.hc_attn, self.hc_ffn = (ops.weights(hyper_weights(weights, name, config)) for name in ("attn", "ffn"))
        self.attn = Attention(weights.inside("attn."), config, config.ratio(layer), numerics, ops)
        self.ffn = MoE(weights.inside("ffn."), config, config.is_hash_layer(layer), ops)

    def __call__(self, streams: Any, batch: Step, cache: LayerCache) -> Any:
        """streams [N, M, D] -> [N, M, D]."""
        return through([self], streams, batch, [cache])


def through(blocks: list[Block], streams: Any, batch: Step, caches: list[LayerCache]) -> Any:
    """Streams [N, M, D] through blocks, one after the other.

    What one sublayer writes and the next one reads is one op.
    """
    ops = blocks[0].ops
    x, post, comb = ops.hc_pre(streams, blocks[0].hc_attn)
    for number, (block, cache) in enumerate(zip(blocks, caches), 1):
        streams, x, post, comb = ops.hc_next(block.attn(x, batch, cache), streams, post, comb, block.hc_ffn)
        out = block.ffn(x, batch)
        if number < len(blocks):
            streams, x, post, comb = ops.hc_next(out, streams, post, comb, blocks[number].hc_attn)
    return ops.hc_post(out, streams, post, comb)


class LMHead:
    """Streams to logits: reduction, norm, vocabulary (spec 2.10). `lm_head` [D, V], of a rank its share of the V."""

    def __init__(self, weights: Weights, config: ModelConfig, lm_head: Tensor, ops: Ops):
        self.ops, self.parallel, self.vocab_size = ops, weights.parallel, config.vocab_size
        fn = weights.value("hc_head_fn") * weights.value("hc_head_scale")
        base, norm = weights.value("hc_head_base"), weights.value("norm.weight")
        self.weights = ops.weights(
            LMHeadWeights(
                weights.matrix(fn), base, norm, lm_head, config.hc_eps, config.rms_norm_eps, config.vocab_size
            )
        )

    def __call__(self, streams: Tensor) -> Tensor:
        """streams [N, M, D] -> logits [N, V]."""
        part = self.ops.lm_head(self.ops.array(streams), self.weights)
        return self.ops.tensor(self.parallel.columns(part, self.vocab_size, self.ops))


class MTP:
    """Predicts the token after next from a position's streams and the token that follows it (spec 2.11)."""

    def __init__(
        self, weights: Weights, config: ModelConfig, embed: Tensor, lm_head: Tensor, numerics: Numerics, ops: Ops
    ):
        self.ops, self.num, self.eps, self.embed = ops, numerics.rounding, config.rms_norm_eps, embed
        self.e_proj, self.h_proj = weights.linear("e_proj.weight"), weights.linear("h_proj.weight")
        self.enorm, self.hnorm = weights.value("enorm.weight"), weights.value("hnorm.weight")
        self.block = Block(weights, config, config.num_hidden_layers, numerics, ops)
        self.lm_head = LMHead(weights, config, lm_head, ops)

    def __call__(self, streams: Tensor, next_ids: Tensor, batch: Step, cache: LayerCache) -> Tensor:
        """streams [N, M, D] out of the last block, next_ids [N] -> logits [N, V]."""
        num, ops = self.num, self.ops
        e = num.bf16(rms_norm(self.embed[next_ids], self.enorm, self.eps))
        h = num.bf16(rms_norm(streams, self.hnorm, self.eps))
        mixed = num.bf16(num.bf16(num.act(h) @ self.h_proj) + num.bf16(num.act(e) @ self.e_proj).unsqueeze(1))
        return self.lm_head(ops.tensor(self.block(ops.array(mixed), batch, cache)))


class Model:
    """Weights and the forward pass of one checkpoint, or of one rank's part of it, on one device."""

    def __init__(
        self, checkpoint: Checkpoint, numerics: Numerics, placement: Placement = CPU, parallel: Parallel = ALONE
    ):
        config = checkpoint.config  # what the files really hold: the MTP block may be missing
        weights: Weights
        if placement.runs_triton:
            from holdfast.engine.packed_weights import PackedWeights

            self.ops = Ops(numerics.rounding, "gpu", placement.device)
            weights = PackedWeights(checkpoint, parallel, placement.device)
        else:
            self.ops, weights = Ops(numerics.rounding), Weights(checkpoint, parallel)
        self.config, self.numerics = config, numerics
        embed = weights.table("embed.weight")
        lm_head = weights.linear(Part("head.weight", rows=parallel.share(config.vocab_size))).contiguous()
        self.embed = self.ops.array(embed)
        self.layers = [
            Block(weights.inside(f"layers.{i}."), config, i, numerics, self.ops)
            for i in range(config.num_hidden_layers)
        ]
        self.lm_head = LMHead(weights, config, lm_head, self.ops)
        self.mtp = None
        if config.has_mtp and not placement.runs_triton:  # steps do not use it
            self.mtp = MTP(weights.inside("mtp.0."), config, embed, lm_head, numerics, self.ops)
        self.identity = checkpoint.identity() if parallel.rank == 0 else ""

    def move_prefix(self, prefix: PinnedPrefix, pages: list[int], first: int, cache: Cache) -> None:
        """Write a pinned prefix into pages of the pool, its first token at position `first`."""
        for block, layer in zip(self.layers, cache.layers):
            if layer.ratio:
                rows, index_rows = prefix.rows[layer.number], prefix.index_rows[layer.number]
                for pool, moved in zip(layer.pools, block.attn.moved(rows, index_rows, first, layer)):
                    for page, values in zip(pages, moved.split(pool.per_page)):
                        pool.write(page, values)

    def logits(self, batch: Step, cache: Cache, rows: np.ndarray) -> Tensor:
        """Run the batch; logits [len(rows), V] of these of its rows."""
        streams = self.streams(batch, cache)
        if not len(rows):
            return torch.empty(0, self.config.vocab_size)
        return self.lm_head(streams[torch.from_numpy(rows).to(streams.device)])

    def streams(self, batch: Step, cache: Cache) -> Tensor:
        """Run the batch through all blocks, writing the cache: streams [N, M, D] of every row."""
        x = self.ops.embed(batch.rows.ids, self.embed, self.config.hc_mult)
        return self.ops.tensor(through(self.layers, x, batch, cache.layers))
