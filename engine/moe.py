"""One feed-forward layer: routed experts and the shared expert (V4 spec 2.9)."""

from typing import Any

import torch

from holdfast.engine.batch import Step
from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.weights import Part, Weights
from holdfast.kernels.dispatch import Ops
from holdfast.kernels.moe import MoEWeights


class MoE:
    """`x` [N, D] in, [N, D] out. The first layers choose experts by token id, the others by score.

    A rank has some columns of every expert's products; every rank routes.
    """

    def __init__(self, weights: Weights, config: ModelConfig, hashed: bool, ops: Ops):
        self.ops, self.parallel = ops, weights.parallel
        self.inner, self.width = config.moe_intermediate_size, config.hidden_size
        inner, width = self.parallel.share(self.inner), self.parallel.share(self.width)
        k = config.num_experts_per_tok
        self.weights = ops.weights(
            MoEWeights(
                weights.linear("gate.weight"),
                torch.zeros(0) if hashed else weights.value("gate.bias"),
                weights.value("gate.tid2eid") if hashed else torch.zeros(0, k, dtype=torch.int64),
                *weights.experts(config.n_routed_experts, inner, width),
                weights.linear(*(Part(f"shared_experts.{name}.weight", inner) for name in ("w1", "w3"))),
                weights.linear(Part("shared_experts.w2.weight", width)),
                k,
                config.routed_scaling_factor,
                config.swiglu_limit,
            )
        )

    def __call__(self, x: Any, batch: Step) -> Any:
        ops, ids = self.ops, batch.rows.ids
        if self.parallel.ranks == 1:
            return ops.moe(x, ids, self.weights)
        hidden, route = ops.moe_hidden(x, ids, self.weights)
        hidden = self.parallel.columns(hidden, self.inner, ops)
        return self.parallel.columns(ops.moe_columns(hidden, route, self.weights), self.width, ops)
