"""One model on several ranks: which part of it a rank computes, and how parts become a whole.

Every large product is shared out by its columns, and columns are only ever put side by side: nothing is added over
ranks. So where a column's bits do not depend on its neighbours, all ranks hold those of one rank alone, however many
they are.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import FileStore, ProcessGroupGloo

from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.errors import EngineError, RankLost
from holdfast.engine.placement import Placement
from holdfast.kernels.dispatch import Ops

CONNECT_S = 30
# A rank that died is noticed at once; this ends the wait for one that hangs, and must outlast compiling the kernels.
ANSWER_S = 900


class Parallel:
    """Rank `rank` of `ranks`. Without a group it is alone, and its part is the whole."""

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

    def columns(self, part: Any, count: int, ops: Ops) -> Any:
        """Each rank's share of `count` columns, an array of ops [..., share] -> all of them in order, [..., count].

        Raises RankLost.
        """
        if self.ranks == 1:
            return part
        widest = -(-count // self.ranks)
        parts = self._gathered(F.pad(ops.tensor(part), (0, widest - part.shape[-1])))
        widths = [len(Parallel(rank, self.ranks).share(count)) for rank in range(self.ranks)]
        return ops.array(torch.cat([columns[..., :width] for columns, width in zip(parts, widths)], -1))

    def _gathered(self, part: Tensor) -> Tensor:
        """[...] of every rank -> [ranks, ...]."""
        parts = part.new_empty(self.ranks, *part.shape)
        own = part.contiguous().view(torch.uint8)  # bytes: gloo knows few types
        all_bytes = parts.view(torch.uint8).flatten(0, 1)
        try:
            if own.is_cuda:
                self._group._allgather_base(all_bytes, own).wait()
            else:  # all to all at once: gloo's own gather goes round a ring, with as many waits as ranks
                self._group.alltoall_base(all_bytes, torch.cat([own] * self.ranks), [], []).wait()
        except RuntimeError as e:
            raise RankLost(f"another rank of {self.ranks} does not answer: {e}") from None
        return parts


ALONE = Parallel()


def check_ranks(config: ModelConfig, placement: Placement, ranks: int) -> None:
    """Raises EngineError for a number of ranks that this model cannot be shared out to."""
    if not _fits(config, placement, ranks):
        heads, kind = config.num_attention_heads, "a GPU" if placement.runs_triton else "a CPU"
        possible = [str(n) for n in range(1, heads + 1) if _fits(config, placement, n)]
        raise EngineError(
            f"ranks={ranks} cannot share the {heads} heads in {config.o_groups} groups,"
            f" {config.hidden_size} channels and"
            f" {config.moe_intermediate_size} columns of an expert of this model on {kind}: use {' or '.join(possible)}"
        )


def _fits(config: ModelConfig, placement: Placement, ranks: int) -> bool:
    """Ranks have whole groups of heads, or an even part of what one group gives.

    Triton's kernels compute experts in tiles of 128 columns.
    """
    if ranks == 1:
        return True
    if config.num_attention_heads % ranks or (config.o_groups % ranks and ranks % config.o_groups):
        return False
    return not placement.runs_triton or not any(
        width % (128 * ranks) for width in (config.moe_intermediate_size, config.hidden_size)
    )
