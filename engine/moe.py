"""One feed-forward layer: routed experts and the shared expert (V4 spec 2.9)."""

from typing import Any

import torch

from engine.batch import Step
from engine.config import ModelConfig
from engine.weights import Part, Weights
from kernels.dispatch import Ops
from kernels.moe import MoEWeights


class MoE:
    """`x` [N, D] in, [N, D] out. The first layers choose experts by token id, the others by score.

    A rank has some of the routed experts and a part of the shared one; every rank routes.
    """

    def __init__(self, weights: Weights, config: ModelConfig, hashed: bool, ops: Ops):
        self.ops, self.parallel = ops, weights.parallel
        k, parallel = config.num_experts_per_tok, weights.parallel
        experts, inner = parallel.share(config.n_routed_experts), parallel.share(config.moe_intermediate_size)
        self.weights = ops.weights(
            MoEWeights(
                weights.linear("gate.weight"),
                torch.zeros(0) if hashed else weights.value("gate.bias"),
                weights.value("gate.tid2eid") if hashed else torch.zeros(0, k, dtype=torch.int64),
                *weights.experts(experts),
                weights.linear(*(Part(f"shared_experts.{name}.weight", rows=inner) for name in ("w1", "w3"))),
                weights.linear(Part("shared_experts.w2.weight", columns=inner)),
                k,
                config.routed_scaling_factor,
                config.swiglu_limit,
                parallel.ranks > 1,
                experts.start,
            )
        )

    def __call__(self, x: Any, batch: Step) -> Any:
        ops = self.ops
        return self.parallel.sum(ops.moe(x, batch.rows.ids, self.weights), ops)
