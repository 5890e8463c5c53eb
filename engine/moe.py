"""One feed-forward layer: routed experts and the shared expert (V4 spec 2.9)."""

from typing import Any

import torch
from torch import Tensor

from engine.batch import Batch
from engine.checkpoint import Checkpoint
from engine.config import ModelConfig
from kernels.dispatch import Ops
from kernels.moe import MoEWeights


class MoE:
    """`x` [N, D] in, [N, D] out. The first layers choose experts by token id, the others by score."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, config: ModelConfig, hashed: bool, ops: Ops):
        self.ops = ops

        def weight(name: str) -> Tensor:
            return checkpoint.weight(prefix + name)

        def stacked(name: str) -> Tensor:
            return torch.stack([weight(f"experts.{e}.{name}.weight").t() for e in range(config.n_routed_experts)])

        k = config.num_experts_per_tok
        shared_w13 = torch.cat((weight("shared_experts.w1.weight"), weight("shared_experts.w3.weight")))
        self.weights = ops.weights(
            MoEWeights(
                weight("gate.weight").t(),
                torch.zeros(0) if hashed else weight("gate.bias"),
                checkpoint.tensor(prefix + "gate.tid2eid").long() if hashed else torch.zeros(0, k, dtype=torch.int64),
                torch.cat((stacked("w1"), stacked("w3")), 2),
                stacked("w2"),
                shared_w13.t(),
                weight("shared_experts.w2.weight").t(),
                k,
                config.routed_scaling_factor,
                config.swiglu_limit,
            )
        )

    def __call__(self, x: Any, batch: Batch) -> Any:
        return self.ops.moe(x, batch.rows.ids, self.weights)
