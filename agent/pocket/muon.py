"""Muon for the weight matrices, AdamW for everything else: the optimiser pocket is trained with.

Muon (Jordan 2024) replaces a matrix's momentum by the nearest orthogonal matrix, found with five Newton-Schulz
steps. Updates are scaled by 0.2 * sqrt(max(rows, columns)), so that one learning rate serves both optimisers
(Moonshot 2025). Matrices of one shape are stacked and orthogonalised in one batched product.
"""

import torch
from torch import Tensor


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """[N, rows, columns] -> the same shape with singular values pulled towards one."""
    a, b, c = 3.4445, -4.7750, 2.0315  # quintic coefficients of the Muon write-up
    tall = g.shape[-2] > g.shape[-1]
    x: Tensor = g.transpose(-1, -2) if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.transpose(-1, -2)
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.transpose(-1, -2) if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates. Parameters are [rows, columns] or stacks [N, rows, columns]."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                m = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(m, group["momentum"])
                by_shape.setdefault(tuple(p.shape[-2:]), []).append((p, update))
            for (rows, columns), pairs in by_shape.items():
                stacked = torch.cat([u.reshape(-1, rows, columns) for _, u in pairs])
                direction = orthogonalise(stacked) * (0.2 * max(rows, columns) ** 0.5)
                start = 0
                for p, _ in pairs:
                    count = p.numel() // (rows * columns)
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(direction[start : start + count].view_as(p), alpha=group["lr"])
                    start += count
