"""The whole model: embedding, blocks of attention and experts around residual streams, head, MTP (V4 spec 2)."""

from pathlib import Path

import torch
from torch import Tensor

from engine.attention import Attention
from engine.batch import Batch
from engine.cache import Cache, LayerCache
from engine.checkpoint import Checkpoint
from engine.config import ModelConfig
from engine.moe import MoE
from engine.numerics import Numerics
from kernels.gemm import linear
from kernels.hyper import hc_head, hc_post, hc_pre
from kernels.norm import rms_norm


class HyperConnection:
    """What one sublayer reads from the streams and how it writes back (spec 2.3)."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, config: ModelConfig):
        m = config.hc_mult
        self.config = config
        scale = checkpoint.weight(prefix + "scale").repeat_interleave(torch.tensor([m, m, m * m]))
        self.fn, self.base = checkpoint.weight(prefix + "fn") * scale.unsqueeze(1), checkpoint.weight(prefix + "base")

    def pre(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        return hc_pre(streams, self.fn, self.base, c.hc_sinkhorn_iters, c.hc_eps, c.rms_norm_eps)


class Block:
    """Attention, then experts, each inside its own hyper-connection; there is no other residual path."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, config: ModelConfig, layer: int, numerics: Numerics):
        self.numerics, self.eps = numerics, config.rms_norm_eps
        self.attn_norm = checkpoint.weight(prefix + "attn_norm.weight")
        self.ffn_norm = checkpoint.weight(prefix + "ffn_norm.weight")
        self.hc_attn = HyperConnection(checkpoint, prefix + "hc_attn_", config)
        self.hc_ffn = HyperConnection(checkpoint, prefix + "hc_ffn_", config)
        self.attn = Attention(checkpoint, prefix + "attn.", config, config.ratio(layer), numerics)
        self.ffn = MoE(checkpoint, prefix + "ffn.", config, config.is_hash_layer(layer), numerics)

    def __call__(self, streams: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        """streams [N, M, D] -> [N, M, D]."""
        num = self.numerics
        y, post, comb = self.hc_attn.pre(streams)
        out = self.attn(num.bf16(rms_norm(num.bf16(y), self.attn_norm, self.eps)), batch, cache)
        streams = num.bf16(hc_post(out, streams, post, comb))
        y, post, comb = self.hc_ffn.pre(streams)
        out = self.ffn(num.bf16(rms_norm(num.bf16(y), self.ffn_norm, self.eps)), batch)
        return num.bf16(hc_post(out, streams, post, comb))


class Head:
    """Streams to logits: reduction, norm, vocabulary (spec 2.10)."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, config: ModelConfig, head: Tensor, numerics: Numerics):
        self.config, self.numerics, self.head = config, numerics, head
        self.fn = checkpoint.weight(prefix + "hc_head_fn") * checkpoint.weight(prefix + "hc_head_scale")
        self.base = checkpoint.weight(prefix + "hc_head_base")
        self.norm = checkpoint.weight(prefix + "norm.weight")

    def __call__(self, streams: Tensor) -> Tensor:
        """streams [N, M, D] -> logits [N, V]."""
        c, num = self.config, self.numerics
        y = num.bf16(hc_head(streams, self.fn, self.base, c.hc_eps, c.rms_norm_eps))
        return linear(num.bf16(rms_norm(y, self.norm, c.rms_norm_eps)), self.head)


class MTP:
    """Predicts the token after next from a position's streams and the token that follows it (spec 2.11)."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, embed: Tensor, head: Tensor, numerics: Numerics):
        self.numerics, self.eps, self.embed = numerics, config.rms_norm_eps, embed
        self.e_proj, self.h_proj = checkpoint.weight("mtp.0.e_proj.weight"), checkpoint.weight("mtp.0.h_proj.weight")
        self.enorm, self.hnorm = checkpoint.weight("mtp.0.enorm.weight"), checkpoint.weight("mtp.0.hnorm.weight")
        self.block = Block(checkpoint, "mtp.0.", config, config.num_hidden_layers, numerics)
        self.head = Head(checkpoint, "mtp.0.", config, head, numerics)

    def __call__(self, streams: Tensor, next_ids: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        """streams [N, M, D] out of the last block, next_ids [N] -> logits [N, V]."""
        num = self.numerics
        e = num.bf16(rms_norm(self.embed[next_ids], self.enorm, self.eps))
        h = num.bf16(rms_norm(streams, self.hnorm, self.eps))
        m = streams.shape[1]
        projected = num.bf16(linear(num.act(h.flatten(0, 1)), self.h_proj)).unflatten(0, (-1, m))
        mixed = num.bf16(projected + num.bf16(linear(num.act(e), self.e_proj)).unsqueeze(1))
        return self.head(self.block(mixed, batch, cache))


class Model:
    """Weights and the forward pass of one checkpoint, on one device."""

    def __init__(self, directory: Path, config: ModelConfig, numerics: Numerics):
        checkpoint = Checkpoint.open(directory, config)
        config = checkpoint.config  # what the files really hold: the MTP block may be missing
        self.config, self.numerics = config, numerics
        self.embed = checkpoint.weight("embed.weight")
        head = checkpoint.weight("head.weight")
        self.layers = [Block(checkpoint, f"layers.{i}.", config, i, numerics) for i in range(config.num_hidden_layers)]
        self.head = Head(checkpoint, "", config, head, numerics)
        self.mtp = MTP(checkpoint, config, self.embed, head, numerics) if config.has_mtp else None
        self.identity = checkpoint.identity()

    def streams(self, batch: Batch, cache: Cache) -> Tensor:
        """Run the batch through all blocks, writing the cache: streams [N, M, D] of every row."""
        x = self.embed[batch.ids].unsqueeze(1).expand(-1, self.config.hc_mult, -1).contiguous()
        for block, layer_cache in zip(self.layers, cache.layers):
            x = block(x, batch, layer_cache)
        return x
