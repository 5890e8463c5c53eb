"""Routing and experts of a mixture-of-experts layer (V4 spec 2.9)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.gemm import linear, pad_rows, row_tile

Rounding = Callable[[Tensor], Tensor]


def route_scores(x: Tensor, gate: Tensor) -> Tensor:
    """x [N, D], gate [E, D] -> sqrt(softplus(x . gate)) [N, E]."""
    y = linear(x, gate)
    return torch.where(y > 20, y, torch.log1p(torch.exp(y))).sqrt_()


def route(scores: Tensor, bias: Tensor | None, chosen: Tensor | None, k: int, factor: float) -> tuple[Tensor, Tensor]:
    """Expert ids [N, k] and their weights [N, k].

    `chosen` [N, k] comes from the token table of a hash layer; otherwise the k best of scores + bias are taken, ties to
    the lower expert. Weights are the raw scores of the chosen, normalised, times `factor`.
    """
    if chosen is None:
        assert bias is not None
        chosen = torch.sort(scores + bias, dim=1, descending=True, stable=True).indices[:, :k]
    weights = scores.gather(1, chosen)
    return chosen, weights.mul_(factor / weights.sum(1, keepdim=True))


def swiglu(gate_up: Tensor, limit: float) -> Tensor:
    """[n, 2I] -> silu(min(gate, limit)) * clamp(up, -limit, limit), [n, I]."""
    gate, up = gate_up.chunk(2, 1)
    return F.silu(gate.clamp(max=limit)).mul_(up.clamp(-limit, limit))


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    w13: Tensor,
    w2: Tensor,
    limit: float,
    real_rows: Tensor,
    to_bf16: Rounding,
    quantise: Rounding,
) -> Tensor:
    """Sum over the chosen experts of w2 . (weight * swiglu(w13 . x)), in ascending order of expert, [N, D].

    x [N, D] of which `real_rows` are no padding; w13 [E, 2I, D], w2 [E, D, I]. Each expert runs once, on its own rows;
    a single row tile it takes whole, with weight zero for rows that did not choose it, which adds exact zeros.
    """
    out = torch.zeros_like(x)
    dense = torch.zeros(len(x), len(w13)).scatter_(1, chosen, weights)
    if len(x) == row_tile():
        for expert in sorted(set(chosen[: len(real_rows)].flatten().tolist())):
            hidden = swiglu(to_bf16(linear(x, w13[expert])), limit).mul_(dense[:, expert : expert + 1])
            out += to_bf16(linear(quantise(to_bf16(hidden)), w2[expert]))
        return out
    is_chosen = torch.zeros(len(x), len(w13), dtype=torch.bool).scatter_(1, chosen, True)
    for expert in range(len(w13)):
        rows = real_rows[is_chosen[real_rows, expert]]
        if len(rows) == 0:
            continue
        padded = F.pad(rows, (0, pad_rows(len(rows)) - len(rows)))
        hidden = swiglu(to_bf16(linear(x[padded], w13[expert])), limit).mul_(dense[padded, expert].unsqueeze(1))
        out.index_add_(0, rows, to_bf16(linear(quantise(to_bf16(hidden)), w2[expert]))[: len(rows)])
    return out
