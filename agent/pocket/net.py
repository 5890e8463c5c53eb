"""A differentiable DeepSeek-V4 for training pocket: float32, parameters under the checkpoint's names.

Owns the training-time forward pass only. The engine computes the same model from the exported checkpoint with
its own code; tests/agent/pocket/test_net.py holds their logits equal. Differences that training allows:
all experts are computed for every token (their routing weight is zero when not chosen), and attention is dense
with masks. The indexer learns by matching the attention's own distribution over compressed entries (a KL term).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.agent.pocket.qat import Rounding


@dataclass(frozen=True)
class NetConfig:
    """The part of config.json that shapes pocket; field names are the checkpoint's."""

    vocab_size: int = 1536
    hidden_size: int = 128
    compress_ratios: tuple[int, ...] = (0, 0, 4, 128, 4, 0)
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    head_dim: int = 96
    qk_rope_head_dim: int = 32
    q_lora_rank: int = 128
    o_groups: int = 2
    o_lora_rank: int = 64
    sliding_window: int = 256
    index_n_heads: int = 4
    index_head_dim: int = 32
    index_topk: int = 64
    n_routed_experts: int = 4
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 128
    num_hash_layers: int = 1
    routed_scaling_factor: float = 1.5
    swiglu_limit: float = 10.0
    hc_mult: int = 2
    hc_sinkhorn_iters: int = 4
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0


def rope_frequencies(config: NetConfig, ratio: int) -> Tensor:
    """Angles per position [rope/2] float64: plain for ratio 0, YaRN 16 over 65,536 otherwise (V4 spec 2.4)."""
    dim = config.qk_rope_head_dim
    theta = config.compress_rope_theta if ratio else config.rope_theta
    freqs = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if ratio == 0:
        return freqs

    def rotation_dim(rotations: float) -> float:
        return dim * math.log(65536 / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low, high = math.floor(rotation_dim(32)), math.ceil(rotation_dim(1))
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return freqs / 16 * ramp + freqs * (1 - ramp)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved RoPE on the last `2 * cos.shape[-1]` channels of x."""
    rope = 2 * cos.shape[-1]
    nope, pairs = x[..., :-rope], x[..., -rope:].unflatten(-1, (-1, 2))
    a, b = pairs[..., 0], pairs[..., 1]
    rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    return torch.cat((nope, rotated), -1)


def rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def hadamard(n: int) -> Tensor:
    """Orthonormal Walsh-Hadamard matrix [n, n], Sylvester order."""
    h = torch.ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return h / math.sqrt(n)


def _weight(*shape: int, std: float | None = None) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * (std if std is not None else shape[-1] ** -0.5))


class Compressor(nn.Module):
    """Gated pooling of `ratio` tokens into one entry; ratio 4 overlaps with the previous block (spec 2.6)."""

    def __init__(self, hidden: int, dim: int, ratio: int):
        super().__init__()
        self.ratio, self.dim, self.halves = ratio, dim, 2 if ratio == 4 else 1
        self.wkv = _weight(self.halves * dim, hidden)
        self.wgate = _weight(self.halves * dim, hidden, std=0.02)
        self.ape = nn.Parameter(torch.zeros(ratio, self.halves * dim))
        self.norm = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, eps: float) -> Tensor:  # [B, T, D] -> [B, T // ratio, dim]
        m, d = self.ratio, self.dim
        x = x[:, : x.shape[1] // m * m]
        u = (x @ self.wkv.t()).unflatten(1, (-1, m))  # [B, E, m, halves * d]
        z = (x @ self.wgate.t()).unflatten(1, (-1, m)) + self.ape
        if self.halves == 2:
            u = torch.cat((F.pad(u[:, :-1, :, :d], (0, 0, 0, 0, 1, 0)), u[..., d:]), 2)
            z = torch.cat((F.pad(z[:, :-1, :, :d], (0, 0, 0, 0, 1, 0), value=-1e30), z[..., d:]), 2)
        return rms((z.softmax(2) * u).sum(2), self.norm, eps)


class Indexer(nn.Module):
    """Lightning indexer (spec 2.7)."""

    def __init__(self, config: NetConfig):
        super().__init__()
        self.wq_b = _weight(config.index_n_heads * config.index_head_dim, config.q_lora_rank)
        self.weights_proj = _weight(config.index_n_heads, config.hidden_size)
        self.compressor = Compressor(config.hidden_size, config.index_head_dim, 4)


class Attention(nn.Module):
    """Sliding window plus compressed entries with a sink, one shared K=V head (spec 2.4-2.8)."""

    def __init__(self, config: NetConfig, ratio: int):
        super().__init__()
        self.config, self.ratio = config, ratio
        heads, d, groups = config.num_attention_heads, config.head_dim, config.o_groups
        self.wq_a = _weight(config.q_lora_rank, config.hidden_size)
        self.q_norm = nn.Parameter(torch.ones(config.q_lora_rank))
        self.wq_b = _weight(heads * d, config.q_lora_rank)
        self.wkv = _weight(d, config.hidden_size)
        self.kv_norm = nn.Parameter(torch.ones(d))
        self.wo_a = _weight(groups * config.o_lora_rank, heads * d // groups)
        self.wo_b = _weight(config.hidden_size, groups * config.o_lora_rank, std=0.02)
        self.attn_sink = nn.Parameter(torch.zeros(heads))
        self.compressor = Compressor(config.hidden_size, d, ratio) if ratio else None
        self.indexer = Indexer(config) if ratio == 4 else None

    def forward(self, x: Tensor, tables: "Tables", rounding: Rounding, select: bool) -> tuple[Tensor, Tensor]:
        """x [B, T, D] -> (output [B, T, D], indexer loss []). T is a multiple of the window."""
        c, (B, T, _) = self.config, x.shape
        H, d, W, eps = c.num_attention_heads, c.head_dim, c.sliding_window, c.rms_norm_eps
        cos, sin = tables.rope[bool(self.ratio)]
        qr = rms(x @ rounding.fp8(self.wq_a).t(), self.q_norm, eps)
        q = rms((qr @ rounding.fp8(self.wq_b).t()).view(B, T, H, d), None, eps)
        q = rotate(q, cos[:T, None], sin[:T, None])
        kv = rms(x @ rounding.fp8(self.wkv).t(), self.kv_norm, eps)
        kv = rounding.kv_row(rotate(kv, cos[:T], sin[:T]), c.qk_rope_head_dim)

        blocks = kv.view(B, T // W, W, d)
        keys = torch.cat((F.pad(blocks[:, :-1], (0, 0, 0, 0, 1, 0)), blocks), 2)  # [B, nb, 2W, d]
        qb = q.reshape(B, T // W, W * H, d) * d**-0.5
        scores = (qb @ keys.transpose(2, 3)).view(B, T // W, W, H, 2 * W) + tables.window[: T // W]
        sink = self.attn_sink.view(H, 1).expand(B, T // W, W, H, 1)
        index_loss = x.new_zeros(())
        if self.compressor is None:
            p = torch.cat((scores, sink), -1).softmax(-1)
            o = p[..., :-1].view(B, T // W, W * H, -1) @ keys
        else:
            m = self.ratio
            entries = rotate(self.compressor(x, eps), cos[:T:m], sin[:T:m])
            entries = rounding.kv_row(entries, c.qk_rope_head_dim)
            E = entries.shape[1]
            visible = tables.visible[m][:T, None, :E]  # [T, 1, E] additive
            if self.indexer is not None and (select or self.training):
                index = self._index_scores(x.detach(), qr.detach(), cos, sin, rounding)  # [B, T, E]
                if select and E > c.index_topk:
                    masked = index.detach() + tables.visible[m][:T, :E]
                    floor = masked.topk(c.index_topk, -1).values[..., -1:]
                    visible = visible + torch.where(masked < floor, -1e30, 0.0).unsqueeze(2)
            far = (qb.view(B, T * H, d) @ entries.transpose(1, 2)).view(B, T, H, E) + visible
            p = torch.cat((scores, far.view(B, T // W, W, H, E), sink), -1).softmax(-1)
            p_far = p[..., 2 * W : -1].reshape(B, T, H, E)
            o = p[..., : 2 * W].reshape(B, T // W, W * H, -1) @ keys
            o = o + (p_far.view(B, T * H, E) @ entries).view_as(o)
            if self.indexer is not None and self.training:
                target = p_far.detach().sum(2)[:, 8:]
                log_index = (index + tables.visible[m][:T, :E])[:, 8:].log_softmax(-1).clamp_min(-100)
                index_loss = -(target * log_index).sum(-1).mean()
        o = rotate(o.view(B, T, H, d), cos[:T, None], -sin[:T, None])
        o = o.reshape(B, T, c.o_groups, -1).transpose(1, 2)  # [B, G, T, H * d / G]
        low = o @ rounding.fp8(self.wo_a).view(c.o_groups, c.o_lora_rank, -1).transpose(1, 2)
        return low.transpose(1, 2).reshape(B, T, -1) @ rounding.fp8(self.wo_b).t(), index_loss

    def _index_scores(self, x: Tensor, qr: Tensor, cos: Tensor, sin: Tensor, rounding: Rounding) -> Tensor:
        c, ix, (B, T, _) = self.config, self.indexer, x.shape
        assert ix is not None
        H, d = c.index_n_heads, c.index_head_dim
        turn = hadamard(d)
        q = rotate((qr @ rounding.fp8(ix.wq_b).t()).view(B, T, H, d), cos[:T, None], sin[:T, None])
        k = rotate(ix.compressor(x, c.rms_norm_eps), cos[:T:4], sin[:T:4])
        q, k = rounding.index_row(q @ turn), rounding.index_row(k @ turn)
        a: Tensor = (x @ ix.weights_proj.t()) * (d**-0.5 * H**-0.5)  # [B, T, H]
        s = F.relu(q.reshape(B, T * H, d) @ k.transpose(1, 2)).view(B, T, H, -1)
        return (s * a.unsqueeze(-1)).sum(2)


class MoE(nn.Module):
    """Routed experts and one shared expert as one wide gated MLP with a routing weight per block (spec 2.9)."""

    tid2eid: Tensor | None
    gate_bias: Tensor | None
    load: Tensor

    def __init__(self, config: NetConfig, hashed: bool):
        super().__init__()
        self.config = config
        E, inter, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.w1, self.w3 = _weight(E, inter, hidden), _weight(E, inter, hidden)
        self.w2 = _weight(E, hidden, inter, std=0.02)
        self.shared_w1, self.shared_w3 = _weight(inter, hidden), _weight(inter, hidden)
        self.shared_w2 = _weight(hidden, inter, std=0.02)
        self.gate_weight = _weight(E, hidden)
        table = torch.stack([torch.randperm(E)[: config.num_experts_per_tok] for _ in range(config.vocab_size)])
        self.register_buffer("tid2eid", table if hashed else None)
        self.register_buffer("gate_bias", None if hashed else torch.zeros(E))
        self.register_buffer("load", torch.zeros(E), persistent=False)

    def forward(self, x: Tensor, ids: Tensor, rounding: Rounding) -> Tensor:
        c = self.config
        scores = F.softplus(x @ self.gate_weight.t()).sqrt()
        if self.tid2eid is not None:
            chosen = self.tid2eid[ids]
        else:
            assert self.gate_bias is not None
            chosen = (scores.detach() + self.gate_bias).topk(c.num_experts_per_tok, -1).indices
        mask = torch.zeros_like(scores).scatter(-1, chosen, 1.0)
        if self.training and self.gate_bias is not None:
            self.load.copy_(mask.detach().mean((0, 1)))
        weights = scores * mask
        weights = weights / weights.sum(-1, keepdim=True) * c.routed_scaling_factor
        weights = torch.cat((weights, torch.ones_like(weights[..., :1])), -1)  # the shared expert's weight is one
        w1 = torch.cat((rounding.fp4(self.w1).flatten(0, 1), rounding.fp8(self.shared_w1)))
        w3 = torch.cat((rounding.fp4(self.w3).flatten(0, 1), rounding.fp8(self.shared_w3)))
        w2 = torch.cat((rounding.fp4(self.w2).transpose(0, 1).flatten(1), rounding.fp8(self.shared_w2)), 1)
        gate = (x @ w1.t()).clamp(max=c.swiglu_limit)
        up = (x @ w3.t()).clamp(-c.swiglu_limit, c.swiglu_limit)
        hidden: Tensor = (F.silu(gate) * up).unflatten(-1, (-1, c.moe_intermediate_size)) * weights.unsqueeze(-1)
        return hidden.flatten(-2) @ w2.t()


class HyperConnection(nn.Module):
    """mHC around one sublayer (spec 2.3)."""

    def __init__(self, config: NetConfig):
        super().__init__()
        self.config = config
        M = config.hc_mult
        self.fn = _weight((2 + M) * M, M * config.hidden_size, std=0.01)
        base = torch.zeros((2 + M) * M)
        base[2 * M :] = (3 * torch.eye(M)).flatten()  # start near "each stream keeps itself"
        self.base = nn.Parameter(base)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X [B, T, M, D] -> (input [B, T, D], post [B, T, M], comb [B, T, M, M])."""
        c, M = self.config, self.config.hc_mult
        v = X.flatten(-2)
        mix = (v @ self.fn.t()) * torch.rsqrt(v.square().mean(-1, keepdim=True) + c.rms_norm_eps)
        pre = torch.sigmoid(mix[..., :M] * self.scale[0] + self.base[:M]) + c.hc_eps
        post = 2 * torch.sigmoid(mix[..., M : 2 * M] * self.scale[1] + self.base[M : 2 * M])
        comb = (mix[..., 2 * M :] * self.scale[2] + self.base[2 * M :]).unflatten(-1, (M, M)).softmax(-1) + c.hc_eps
        comb = comb / (comb.sum(-2, keepdim=True) + c.hc_eps)
        for _ in range(c.hc_sinkhorn_iters - 1):
            comb = comb / (comb.sum(-1, keepdim=True) + c.hc_eps)
            comb = comb / (comb.sum(-2, keepdim=True) + c.hc_eps)
        return (pre.unsqueeze(-1) * X).sum(-2), post, comb


def hc_post(o: Tensor, X: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    mixed = (comb.unsqueeze(-1) * X.unsqueeze(-2)).sum(-3)  # sums over the first index of comb
    return mixed + post.unsqueeze(-1) * o.unsqueeze(-2)


class HeadReduction(nn.Module):
    """Weighted sum of the streams before the output norm (spec 2.3)."""

    def __init__(self, config: NetConfig):
        super().__init__()
        self.config = config
        self.fn = _weight(config.hc_mult, config.hc_mult * config.hidden_size, std=0.01)
        self.base = nn.Parameter(torch.zeros(config.hc_mult))
        self.scale = nn.Parameter(torch.ones(1))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, X: Tensor) -> Tensor:
        v, c = X.flatten(-2), self.config
        mix = (v @ self.fn.t()) * torch.rsqrt(v.square().mean(-1, keepdim=True) + c.rms_norm_eps)
        pre = torch.sigmoid(mix * self.scale + self.base) + c.hc_eps
        return rms((pre.unsqueeze(-1) * X).sum(-2), self.norm, c.rms_norm_eps)


class Block(nn.Module):
    def __init__(self, config: NetConfig, layer: int):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.attn = Attention(config, config.compress_ratios[layer])
        self.ffn = MoE(config, hashed=layer < config.num_hash_layers)
        self.attn_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.ffn_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.hc_attn, self.hc_ffn = HyperConnection(config), HyperConnection(config)

    def forward(
        self, X: Tensor, ids: Tensor, tables: "Tables", rounding: Rounding, select: bool
    ) -> tuple[Tensor, Tensor]:
        y, post, comb = self.hc_attn(X)
        o, index_loss = self.attn(rms(y, self.attn_norm, self.eps), tables, rounding, select)
        X = hc_post(o, X, post, comb)
        y, post, comb = self.hc_ffn(X)
        return hc_post(self.ffn(rms(y, self.ffn_norm, self.eps), ids, rounding), X, post, comb), index_loss


class MTP(nn.Module):
    """Predicts token t+2 from the streams at t and token t+1 (spec 2.11)."""

    def __init__(self, config: NetConfig):
        super().__init__()
        D = config.hidden_size
        self.block = Block(config, config.num_hidden_layers)
        self.e_proj, self.h_proj = _weight(D, D), _weight(D, D)
        self.enorm, self.hnorm = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        self.reduce = HeadReduction(config)


class Tables:
    """Constant tensors of a forward pass for sequences of at most `tokens` tokens."""

    def __init__(self, config: NetConfig, tokens: int):
        t = torch.arange(tokens)
        self.rope = {}
        for compressed in (False, True):
            angles = t.double()[:, None] * rope_frequencies(config, int(compressed))
            self.rope[compressed] = (angles.cos().float(), angles.sin().float())
        W = config.sliding_window
        query, key = torch.arange(W)[:, None], torch.arange(2 * W)[None] - W
        near = (key <= query) & (key > query - W)
        first = near & (key >= 0)  # the first block has nothing before it
        blocks = torch.stack([first] + [near] * (tokens // W - 1))
        self.window = torch.where(blocks, 0.0, -1e30)[:, :, None]  # [nb, W, 1, 2W]
        self.visible = {
            m: torch.where((torch.arange(tokens // m)[None] + 1) * m <= t[:, None] + 1, 0.0, -1e30) for m in (4, 128)
        }


class Net(nn.Module):
    def __init__(self, config: NetConfig):
        super().__init__()
        self.config = config
        self.embed = _weight(config.vocab_size, config.hidden_size, std=0.5)
        self.blocks = [Block(config, layer) for layer in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(self.blocks)
        self.reduce = HeadReduction(config)
        self.head = _weight(config.vocab_size, config.hidden_size, std=0.02)
        self.mtp = MTP(config)

    def streams(self, ids: Tensor, tables: Tables, rounding: Rounding, select: bool) -> tuple[Tensor, Tensor]:
        """ids [B, T] -> (streams [B, T, M, D], indexer loss [])."""
        X = rounding.bf16(self.embed)[ids].unsqueeze(2).expand(-1, -1, self.config.hc_mult, -1)
        index_loss = X.new_zeros(())
        for layer in self.blocks:
            X, loss = layer(X, ids, tables, rounding, select)
            index_loss = index_loss + loss
        return X, index_loss

    def forward(self, ids: Tensor, tables: Tables, rounding: Rounding, select: bool = True) -> tuple[Tensor, Tensor]:
        """ids [B, T] -> (logits [B, T, V], indexer loss [])."""
        X, index_loss = self.streams(ids, tables, rounding, select)
        return self.reduce(X) @ rounding.bf16(self.head).t(), index_loss

    def mtp_logits(self, X: Tensor, next_ids: Tensor, tables: Tables, rounding: Rounding) -> Tensor:
        """Streams X [B, T, M, D] and the tokens after them [B, T] -> logits [B, T, V] for the tokens after those."""
        eps, m = self.config.rms_norm_eps, self.mtp
        e = rms(rounding.bf16(self.embed)[next_ids], m.enorm, eps) @ rounding.fp8(m.e_proj).t()
        h = rms(X, m.hnorm, eps) @ rounding.fp8(m.h_proj).t()
        after, _ = m.block(e.unsqueeze(2) + h, next_ids, tables, rounding, False)
        logits: Tensor = m.reduce(after) @ rounding.bf16(self.head).t()
        return logits
