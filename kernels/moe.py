"""Routing and experts of a mixture-of-experts layer (V4 spec 2.9)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.kernels.rounding import Rounding
from holdfast.kernels.rows import Indices


class MoEWeights(NamedTuple):
    gate: Tensor  # [D, E]
    bias: Tensor  # [E], or [0] in a hash layer
    tid2eid: Tensor  # int64 [V, k]: experts by token id, in a hash layer; else [0, k]
    w13: Tensor  # [E, D, 2 * inner]: gate, then up; of a rank its share of the inner
    w2: Tensor  # [E, inner, D]; of a rank its share of the D
    shared_w13: Tensor  # [D, 2 * inner], shared out as w13
    shared_w2: Tensor  # [inner, D], shared out as w2
    k: int
    factor: float
    limit: float


def moe(x: Tensor, ids: Indices, w: MoEWeights, *, num: Rounding) -> Tensor:
    """Chosen experts and the shared one: x [N, D], token ids [N] -> [N, D]."""
    return moe_columns(*moe_hidden(x, ids, w, num=num), w, num=num)


def moe_hidden(x: Tensor, ids: Indices, w: MoEWeights, *, num: Rounding) -> tuple[Tensor, Tensor]:
    """x [N, D] -> hidden values [N, k + 1, inner], the shared expert's last; and the chosen experts [N, k].

    Experts are ascending.
    """
    y = x @ w.gate
    scores = torch.where(y > 20, y, torch.log1p(torch.exp(y))).sqrt()
    table = w.tid2eid[torch.from_numpy(ids)] if len(w.tid2eid) else None
    chosen, weights = route(scores, w.bias, table, w.k, w.factor)
    chosen, order = chosen.sort(1)
    weights, quantised = weights.gather(1, order), num.act(x)
    hidden = x.new_empty(len(x), w.k + 1, w.w13.shape[2] // 2)
    for expert in chosen.unique().tolist():
        rows, slots = (chosen == expert).nonzero(as_tuple=True)
        gate_up = num.bf16(quantised[rows] @ w.w13[expert])
        hidden[rows, slots] = num.bf16(swiglu(gate_up, w.limit) * weights[rows, slots].unsqueeze(1))
    hidden[:, w.k] = num.bf16(swiglu(num.bf16(quantised @ w.shared_w13), w.limit))
    return hidden, chosen


def moe_columns(hidden: Tensor, chosen: Tensor, w: MoEWeights, *, num: Rounding) -> Tensor:
    """The second products, summed over a row's experts in ascending order and the shared one: [N, D]."""
    out = hidden.new_zeros(len(hidden), w.shared_w2.shape[1])
    for expert in chosen.unique().tolist():
        rows, slots = (chosen == expert).nonzero(as_tuple=True)
        out.index_add_(0, rows, num.bf16(num.act(hidden[rows, slots]) @ w.w2[expert]))
    return num.bf16(out + num.bf16(num.act(hidden[:, w.k]) @ w.shared_w2))


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
