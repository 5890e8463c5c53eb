"""Routing and experts of a mixture-of-experts layer (V4 spec 2.9)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.gemm import linear, pad_rows

Rounding = Callable[[Tensor], Tensor]


def route_scores(x: Tensor, gate: Tensor) -> Tensor:
    """x [N, D], gate [E, D] -> sqrt(softplus(x . gate)) [N, E]."""
    return F.softplus(linear(x, gate)).sqrt()


def route(scores: Tensor, bias: Tensor | None, chosen: Tensor | None, k: int, factor: float) -> tuple[Tensor, Tensor]:
    """Expert ids [N, k] ascending and their weights [N, k].

    `chosen` [N, k] comes from the token table of a hash layer; otherwise the k best of scores + bias are taken, ties to
    the lower expert. Weights are the raw scores of the chosen, normalised, times `factor`.
    """
    if chosen is None:
        assert bias is not None
        chosen = torch.sort(scores + bias, dim=1, descending=True, stable=True).indices[:, :k]
    chosen = chosen.sort(1).values
    weights = scores.gather(1, chosen)
    total = weights[:, :1].clone()
    for i in range(1, k):
        total += weights[:, i : i + 1]
    return chosen, weights / total * factor


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

    x [N, D] of which `real_rows` are no padding; w13 [E, 2I, D], w2 [E, D, I]. Each expert runs once on its own rows.
    """
    out = torch.zeros_like(x)
    k = chosen.shape[1]
    chosen, weights = chosen[real_rows].flatten(), weights[real_rows].flatten()
    order = torch.argsort(chosen, stable=True)
    counts = torch.bincount(chosen, minlength=len(w13)).tolist()
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        picks = order[start : start + count]
        start += count
        rows = real_rows[picks // k]
        padded = F.pad(rows, (0, pad_rows(count) - count))
        hidden = swiglu(to_bf16(linear(x[padded], w13[expert])), limit)
        hidden[:count] *= weights[picks].unsqueeze(1)
        out.index_add_(0, rows, to_bf16(linear(quantise(to_bf16(hidden)), w2[expert]))[:count])
    return out
