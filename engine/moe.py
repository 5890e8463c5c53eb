"""One feed-forward layer: routed experts and the shared expert (V4 spec 2.9)."""

import torch
from torch import Tensor

from engine.batch import Batch
from engine.checkpoint import Checkpoint
from engine.config import ModelConfig
from engine.numerics import Numerics
from kernels.gemm import linear
from kernels.moe import experts, route, route_scores, swiglu


class MoE:
    """`x` [N, D] in, [N, D] out. The first layers choose experts by token id, the others by score."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, config: ModelConfig, hashed: bool, numerics: Numerics):
        self.config, self.numerics = config, numerics

        def weight(name: str) -> Tensor:
            return checkpoint.weight(prefix + name)

        def stacked(name: str) -> Tensor:
            return torch.stack([weight(f"experts.{e}.{name}.weight") for e in range(config.n_routed_experts)])

        self.gate = weight("gate.weight")
        self.bias = None if hashed else weight("gate.bias")
        self.tid2eid = checkpoint.tensor(prefix + "gate.tid2eid") if hashed else None
        self.w13 = torch.cat((stacked("w1"), stacked("w3")), 1)  # [E, 2 * inter, D]
        self.w2 = stacked("w2")
        self.shared_w13 = torch.cat((weight("shared_experts.w1.weight"), weight("shared_experts.w3.weight")))
        self.shared_w2 = weight("shared_experts.w2.weight")

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        config, num = self.config, self.numerics
        scores = route_scores(x, self.gate)
        table = self.tid2eid[batch.ids] if self.tid2eid is not None else None
        chosen, weights = route(scores, self.bias, table, config.num_experts_per_tok, config.routed_scaling_factor)
        quantised = num.act(x)
        routed = experts(
            quantised, chosen, weights, self.w13, self.w2, config.swiglu_limit, batch.real_rows, num.bf16, num.act
        )
        hidden = num.bf16(swiglu(num.bf16(linear(quantised, self.shared_w13)), config.swiglu_limit))
        return num.bf16(routed + num.bf16(linear(num.act(hidden), self.shared_w2)))
