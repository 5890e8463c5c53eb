"""The whole model: embedding, blocks of attention and experts around residual streams, head, MTP (V4 spec 2)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.attention import Attention
from engine.batch import Batch
from engine.cache import Cache, LayerCache
from engine.checkpoint import Checkpoint
from engine.config import ModelConfig
from engine.moe import MoE
from engine.numerics import Numerics
from engine.pinned import PinnedHead
from kernels.dispatch import Ops
from kernels.hyper import HeadWeights, HyperWeights
from kernels.norm import rms_norm


def hyper_weights(checkpoint: Checkpoint, prefix: str, norm: Tensor, config: ModelConfig) -> HyperWeights:
    """What one sublayer reads from the streams and how it writes back (spec 2.3), and its norm."""
    m = config.hc_mult
    scale = checkpoint.weight(prefix + "scale").repeat_interleave(torch.tensor([m, m, m * m]))
    fn, base = checkpoint.weight(prefix + "fn") * scale.unsqueeze(1), checkpoint.weight(prefix + "base")
    return HyperWeights(fn.t(), base, norm, config.hc_sinkhorn_iters, config.hc_eps, config.rms_norm_eps)


class Block:
    """Attention, then experts, each inside its own hyper-connection; there is no other residual path."""

    def __init__(
        self, checkpoint: Checkpoint, prefix: str, config: ModelConfig, layer: int, numerics: Numerics, ops: Ops
    ):
        self.ops = ops
        norms = [checkpoint.weight(f"{prefix}{name}_norm.weight") for name in ("attn", "ffn")]
        self.hc_attn = ops.weights(hyper_weights(checkpoint, prefix + "hc_attn_", norms[0], config))
        self.hc_ffn = ops.weights(hyper_weights(checkpoint, prefix + "hc_ffn_", norms[1], config))
        self.attn = Attention(checkpoint, prefix + "attn.", config, config.ratio(layer), numerics, ops)
        self.ffn = MoE(checkpoint, prefix + "ffn.", config, config.is_hash_layer(layer), ops)

    def __call__(self, streams: Any, batch: Batch, cache: LayerCache) -> Any:
        """streams [N, M, D] -> [N, M, D]."""
        ops = self.ops
        x, post, comb = ops.hc_pre(streams, self.hc_attn)
        streams = ops.hc_post(self.attn(x, batch, cache), streams, post, comb)
        x, post, comb = ops.hc_pre(streams, self.hc_ffn)
        return ops.hc_post(self.ffn(x, batch), streams, post, comb)


class Head:
    """Streams to logits: reduction, norm, vocabulary (spec 2.10)."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, config: ModelConfig, head: Tensor, ops: Ops):
        self.ops = ops
        fn = checkpoint.weight(prefix + "hc_head_fn") * checkpoint.weight(prefix + "hc_head_scale")
        base, norm = checkpoint.weight(prefix + "hc_head_base"), checkpoint.weight(prefix + "norm.weight")
        self.weights = ops.weights(HeadWeights(fn.t(), base, norm, head, config.hc_eps, config.rms_norm_eps))

    def __call__(self, streams: Tensor) -> Tensor:
        """streams [N, M, D] -> logits [N, V]."""
        return self.ops.tensor(self.ops.head(self.ops.array(streams), self.weights))


class MTP:
    """Predicts the token after next from a position's streams and the token that follows it (spec 2.11)."""

    def __init__(
        self, checkpoint: Checkpoint, config: ModelConfig, embed: Tensor, head: Tensor, numerics: Numerics, ops: Ops
    ):
        self.ops, self.num, self.eps, self.embed = ops, numerics.rounding, config.rms_norm_eps, embed
        self.e_proj = checkpoint.weight("mtp.0.e_proj.weight").t()
        self.h_proj = checkpoint.weight("mtp.0.h_proj.weight").t()
        self.enorm, self.hnorm = checkpoint.weight("mtp.0.enorm.weight"), checkpoint.weight("mtp.0.hnorm.weight")
        self.block = Block(checkpoint, "mtp.0.", config, config.num_hidden_layers, numerics, ops)
        self.head = Head(checkpoint, "mtp.0.", config, head, ops)

    def __call__(self, streams: Tensor, next_ids: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        """streams [N, M, D] out of the last block, next_ids [N] -> logits [N, V]."""
        num, ops = self.num, self.ops
        e = num.bf16(rms_norm(self.embed[next_ids], self.enorm, self.eps))
        h = num.bf16(rms_norm(streams, self.hnorm, self.eps))
        mixed = num.bf16(num.bf16(num.act(h) @ self.h_proj) + num.bf16(num.act(e) @ self.e_proj).unsqueeze(1))
        return self.head(ops.tensor(self.block(ops.array(mixed), batch, cache)))


class Model:
    """Weights and the forward pass of one checkpoint, on one device."""

    def __init__(self, directory: Path, config: ModelConfig, numerics: Numerics):
        checkpoint = Checkpoint.open(directory, config)
        config = checkpoint.config  # what the files really hold: the MTP block may be missing
        self.config, self.numerics, self.ops = config, numerics, Ops(numerics.rounding)
        embed, head = checkpoint.weight("embed.weight"), checkpoint.weight("head.weight").t().contiguous()
        self.embed = self.ops.array(embed)
        self.layers = [
            Block(checkpoint, f"layers.{i}.", config, i, numerics, self.ops) for i in range(config.num_hidden_layers)
        ]
        self.head = Head(checkpoint, "", config, head, self.ops)
        self.mtp = MTP(checkpoint, config, embed, head, numerics, self.ops) if config.has_mtp else None
        self.identity = checkpoint.identity()

    def move_head(self, head: PinnedHead, pages: list[int], first: int, cache: Cache) -> None:
        """Write a pinned head into pages of the pool, its first token at position `first`."""
        for block, layer in zip(self.layers, cache.layers):
            if layer.ratio:
                rows, index_rows = head.rows[layer.number], head.index_rows[layer.number]
                for pool, moved in zip(layer.pools, block.attn.moved(rows, index_rows, first, layer)):
                    for page, values in zip(pages, moved.split(pool.per_page)):
                        pool.write(page, values)

    def streams(self, batch: Batch, cache: Cache) -> Tensor:
        """Run the batch through all blocks, writing the cache: streams [N, M, D] of every row."""
        x = self.ops.embed(batch.rows.ids, self.embed, self.config.hc_mult)
        for block, layer_cache in zip(self.layers, cache.layers):
            x = block(x, batch, layer_cache)
        return self.ops.tensor(x)
