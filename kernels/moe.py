"""Routing and experts of a mixture-of-experts layer (V4 spec 2.9)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.rounding import Rounding
from kernels.rows import Indices


class MoEWeights(NamedTuple):
    gate: Tensor  # [D, E]
    bias: Tensor  # [E], or [0] in a hash layer
    tid2eid: Tensor  # int64 [V, k]: experts by token id, in a hash layer; else [0, k]
    w13: Tensor  # [experts here, D, 2 * inner]: gate, then up
    w2: Tensor  # [experts here, inner, D]
    shared_w13: Tensor  # [D, 2 * shared inner]
    shared_w2: Tensor  # [shared inner, D]
    k: int
    factor: float
    limit: float
    is_partial: bool = False  # the sum over all ranks is rounded, not this
    first_expert: int = 0  # w13[0] is this one; experts that are not here add nothing


def moe(x: Tensor, ids: Indices, w: MoEWeights, *, num: Rounding) -> Tensor:
    """Chosen experts and the shared one: x [N, D], token ids [N] -> [N, D]."""
    y = x @ w.gate
    scores = torch.where(y > 20, y, torch.log1p(torch.exp(y))).sqrt()
    table = w.tid2eid[torch.from_numpy(ids)] if len(w.tid2eid) else None
    chosen, weights = route(scores, w.bias, table, w.k, w.factor)
    dense = torch.zeros_like(scores).scatter_(1, chosen, weights)
    quantised, out = num.act(x), torch.zeros_like(x)
    for expert in sorted(set(chosen.flatten().tolist())):
        place = expert - w.first_expert
        if not 0 <= place < len(w.w13):
            continue
        rows = (chosen == expert).any(1).nonzero().flatten()
        hidden = swiglu(num.bf16(quantised[rows] @ w.w13[place]), w.limit) * dense[rows, expert].unsqueeze(1)
        out.index_add_(0, rows, num.bf16(num.act(num.bf16(hidden)) @ w.w2[place]))
    hidden = num.bf16(swiglu(num.bf16(quantised @ w.shared_w13), w.limit))
    shared = num.act(hidden) @ w.shared_w2
    return out + shared if w.is_partial else num.bf16(out + num.bf16(shared))


def route(scores: Tensor, bias: Tensor, chosen: Tensor | None, k: int, factor: float) -> tuple[Tensor, Tensor]:
    """Expert ids [N, k] and their weights [N, k].

    `chosen` [N, k] comes from the token table of a hash layer; otherwise the k best of scores + bias are taken, ties to
    the lower expert. Weights are the raw scores of the chosen, normalised, times `factor`.
    """
    if chosen is None:
        chosen = torch.sort(scores + bias, dim=1, descending=True, stable=True).indices[:, :k]
    weights = scores.gather(1, chosen)
    return chosen, weights * (factor / weights.sum(1, keepdim=True))


def swiglu(gate_up: Tensor, limit: float) -> Tensor:
    """[n, 2I] -> silu(min(gate, limit)) * clamp(up, -limit, limit), [n, I]."""
    gate, up = gate_up.chunk(2, 1)
    return F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)
