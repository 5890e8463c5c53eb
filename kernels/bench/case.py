"""A case of the bench: one op at one shape, what it must move and compute, and what to compare it with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that shape its kernels, by the checkpoint's names."""

    name: str
    hidden_size: int
    num_attention_heads: int
    q_lora_rank: int
    o_groups: int
    index_topk: int
    n_routed_experts: int
    moe_intermediate_size: int
    routed_scaling_factor: float
    head_dim: int = 512
    qk_rope_head_dim: int = 64
    o_lora_rank: int = 1024
    index_n_heads: int = 64
    index_head_dim: int = 128
    num_experts_per_tok: int = 6
    sliding_window: int = 128
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    vocab_size: int = 129_280
    swiglu_limit: float = 10.0


FLASH = Shape("flash", 4096, 64, 1024, 8, 512, 256, 2048, 1.5)
PRO = Shape("pro", 7168, 128, 1536, 16, 1024, 384, 3072, 2.5)
DECODE_ROWS = (1, 8, 64)
PREFILL_ROWS = (512, 4096, 8192)
CONTEXTS = (8_192, 131_072, 1_048_576)


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    `build(device)` makes inputs and gives the call of our op.

    `twin` gives the call of its torch twin on equal inputs, `library` the best library call, where there is one. Built
    on the meta device, a call only asks for what would be launched.
    """

    op: str
    shape: Shape
    rows: int
    context: int  # tokens before these rows; 0 where it does not matter
    num_bytes: int  # that must move at least: weights once, inputs, outputs
    num_ops: int  # multiply and add counted as two
    build: Callable[[torch.device], Call]
    twin: Callable[[torch.device], Call] | None = None
    library: Callable[[torch.device], Call] | None = None

    @property
    def name(self) -> str:
        at = f" @{self.context}" if self.context else ""
        return f"{self.op} {self.shape.name} x{self.rows}{at}"
