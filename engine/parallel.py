"""One model on several ranks: which part of it a rank computes, and the sums over all of them.

Heads and experts are shared out; everything else every rank computes alike. So after each sum all ranks must hold the
same bits: parts are gathered and added in the order of the ranks, everywhere, whatever the row and the batch.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import FileStore, ProcessGroupGloo

from engine.config import ModelConfig
from engine.errors import EngineError, RankLost
from engine.numerics import Numerics
from engine.placement import Placement
from kernels.cpu.threads import settle
from kernels.dispatch import Ops

CONNECT_S = 30
# A rank that died is noticed at once; this ends the wait for one that hangs, and must outlast compiling the kernels.
ANSWER_S = 900


class Parallel:
    """Rank `rank` of `ranks`. Without a group it is alone, and its sums are what it was given."""

    def __init__(self, rank: int = 0, ranks: int = 1):
        self.rank, self.ranks = rank, ranks
        self._group: Any = None

    def connect(self, meeting: Path, placement: Placement) -> None:
        """Meet the other ranks, by NCCL on GPUs, at a file that only this user can read; raises RankLost when
        one does not come."""
        try:
            store = FileStore(str(meeting), self.ranks)
            store.set_timeout(timedelta(seconds=CONNECT_S))
            self._group = (self._nccl if placement.is_gpu else self._gloo)(store)
        except RuntimeError as e:
            raise RankLost(f"the {self.ranks} ranks could not meet: {e}") from None

    def _gloo(self, store: FileStore) -> Any:
        gloo: Any = ProcessGroupGloo  # its options have no types
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname="127.0.0.1")]
        options._timeout = timedelta(seconds=ANSWER_S)
        return gloo(store, self.rank, self.ranks, options)

    def _nccl(self, store: FileStore) -> Any:
        nccl: Any = torch.distributed.ProcessGroupNCCL  # only there in builds for CUDA
        options = nccl.Options()
        options._timeout = timedelta(seconds=ANSWER_S)
        return nccl(store, self.rank, self.ranks, options)

    def share(self, count: int) -> range:
        """This rank's part of `count` things: contiguous, in the order of the ranks, as even as can be."""
        return range(self.rank * count // self.ranks, (self.rank + 1) * count // self.ranks)

    def sum(self, part: Any, ops: Ops) -> Any:
        """The sum of all ranks' parts, an array of ops [N, D], rounded once: the same bits on every rank.

        Raises RankLost.
        """
        if self.ranks == 1:
            return part
        parts = self._gathered(part)
        total = parts[0] + parts[1]
        for other in parts[2:]:
            total += other
        return ops.activation(total)

    def columns(self, part: Tensor, count: int) -> Tensor:
        """Each rank's share of `count` columns, [N, share] -> all of them in order, [N, count]."""
        if self.ranks == 1:
            return part
        widest = -(-count // self.ranks)
        parts = self._gathered(F.pad(part, (0, widest - part.shape[1])))
        widths = [len(Parallel(rank, self.ranks).share(count)) for rank in range(self.ranks)]
        return torch.cat([columns[:, :width] for columns, width in zip(parts, widths)], 1)

    def _gathered(self, part: Any) -> Tensor:
        """[N, K] of every rank -> [ranks, N, K]."""
        settle()
        own = torch.from_numpy(part) if isinstance(part, np.ndarray) else part.contiguous()
        parts = torch.empty(self.ranks, *own.shape, device=own.device)
        try:
            self._group._allgather_base(parts.flatten(0, 1), own).wait()
        except RuntimeError as e:
            raise RankLost(f"another rank of {self.ranks} does not answer: {e}") from None
        return parts


ALONE = Parallel()


def check_ranks(config: ModelConfig, numerics: Numerics, ranks: int) -> None:
    """Raises EngineError for a number of ranks that this model cannot be shared out to."""
    if not _fits(config, numerics, ranks):
        heads = config.num_attention_heads
        possible = [str(n) for n in range(1, heads + 1) if _fits(config, numerics, n)]
        raise EngineError(
            f"ranks={ranks} cannot share the {heads} heads in {config.o_groups} groups and"
            f" {config.n_routed_experts} experts of this model in {numerics.name} numerics: use {' or '.join(possible)}"
        )


def _fits(config: ModelConfig, numerics: Numerics, ranks: int) -> bool:
    """Ranks have whole groups of heads, or an even part of one group; `official` rounds what a group gives, so there
    groups stay whole, and so do the blocks of 128 that activations are quantised in."""
    if ranks == 1:
        return True
    heads, groups, inner = config.num_attention_heads, config.o_groups, config.moe_intermediate_size
    if heads % ranks or config.n_routed_experts < ranks or inner % ranks:
        return False
    if numerics.name != "official":
        return groups % ranks == 0 or ranks % groups == 0
    return groups % ranks == 0 and groups // ranks * config.o_lora_rank % 128 == 0 and inner // ranks % 128 == 0
