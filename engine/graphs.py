"""Decode steps as CUDA graphs: one launch of the whole step instead of about a thousand.

A graph is captured for a number of rows (`BUCKETS`) and for contexts with or without the indexer. It reads where its
rows are from fixed tensors, which a step fills; rows that a step does not have belong to no segment. Shapes in a graph
are those of the longest context, lengths are read on the device. Without a GPU the same step runs without a graph, so
that the rest can be tested.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from holdfast.engine.batch import Step
from holdfast.engine.checkpoint.config import CSA
from holdfast.engine.model import Model
from holdfast.engine.state.cache import Cache
from holdfast.kernels.gpu.rows import DeviceRows, owners
from holdfast.kernels.rows import Rows

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
WARM_UPS = 2  # runs before the capture: kernels are compiled, memory is reserved


class StaticRows:
    """The rows of a step in tensors that stay where they are, filled by one copy from the host."""

    def __init__(self, num_rows: int, most_pages: int, page_tokens: int, device: torch.device):
        fields = {
            "ids": (np.int32, (num_rows,)),
            "positions": (np.int64, (num_rows,)),
            "owners": (np.int32, (num_rows,)),
            "starts": (np.int32, (num_rows + 1,)),
            "slots": (np.int32, (num_rows,)),
            "dropped": (np.int64, (num_rows,)),
            "pages": (np.int32, (num_rows, most_pages)),
        }
        places, end = {}, 0
        for name, (dtype, shape) in fields.items():
            places[name] = (end, end + int(np.prod(shape)) * np.dtype(dtype).itemsize)
            end = -(-places[name][1] // 16) * 16
        self._host = torch.zeros(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros(end, dtype=torch.uint8, device=device)
        host, tensors = self._host.numpy(), {}
        self._arrays: dict[str, np.ndarray] = {}
        for name, (dtype, shape) in fields.items():
            start, stop = places[name]
            self._arrays[name] = host[start:stop].view(dtype).reshape(shape)
            torch_dtype = torch.int64 if dtype is np.int64 else torch.int32
            tensors[name] = self._device[start:stop].view(torch_dtype).view(shape)
        self.rows = DeviceRows(**tensors, page_tokens=page_tokens)

    def fill(self, rows: Rows) -> None:
        """Put a step's rows in; those after them belong to no segment."""
        count, segments, host = len(rows.ids), len(rows.slots), self._arrays
        host["owners"][:] = -1
        host["owners"][:count] = owners(rows)
        for name in ("ids", "positions"):
            host[name][:count] = getattr(rows, name)
            host[name][count:] = 0
        host["starts"][: segments + 1], host["starts"][segments + 1 :] = rows.starts, count
        host["slots"][:segments], host["dropped"][:segments] = rows.slots, rows.dropped
        host["pages"][:segments, : rows.pages.shape[1]] = rows.pages
        self._device.copy_(self._host, non_blocking=True)


class GraphStep(Step):
    """What the model asks of a step, for a graph: nothing in it depends on the step."""

    def __init__(self, rows: DeviceRows, has_many_entries: bool):
        self.rows, self.prefix_rows, self._freqs_cis = rows, [], {}
        self.has_many_entries = has_many_entries

    def most_visible(self, ratio: int) -> int:
        return 2**62 if self.has_many_entries else 0


def steps_of(model: Model, cache: Cache) -> Callable[[Step, np.ndarray], Tensor]:
    """What computes a step on this device: logits [len(rows), V] of some of its rows."""
    if cache.placement.runs_triton:
        return Graphs(model, cache).logits
    return lambda step, rows: model.logits(step, cache, rows)


class Graphs:
    """Runs decode steps: those of few rows, none of which belongs to a pinned prefix."""

    def __init__(self, model: Model, cache: Cache):
        self.model, self.cache = model, cache
        self.most_pages = min(cache.pages_for(model.config.max_position_embeddings), cache.num_pages)
        self._static: dict[int, StaticRows] = {}
        self._steps: dict[tuple[int, bool], Callable[[], Tensor]] = {}

    def logits(self, step: Step, rows: np.ndarray) -> Tensor:
        """Logits [len(rows), V] of some rows of a step, by a graph where there may be one."""
        if len(step.host_rows.ids) > BUCKETS[-1] or step.prefixes or not len(rows):
            return self.model.logits(step, self.cache, rows)
        return self.run(step)[torch.from_numpy(rows).to(self.cache.device)]

    def run(self, step: Step) -> Tensor:
        """Logits [N, V] of all rows of a step."""
        count = len(step.host_rows.ids)
        num_rows = next(bucket for bucket in BUCKETS if bucket >= count)
        if num_rows not in self._static:
            size, device = self.cache.page_tokens, self.cache.device
            self._static[num_rows] = StaticRows(num_rows, self.most_pages, size, device)
        static = self._static[num_rows]
        static.fill(step.host_rows)
        key = num_rows, step.most_visible(CSA) > self.model.config.index_topk
        if key not in self._steps:
            self._steps[key] = self._captured(static.rows, key[1])
        return self._steps[key]()[:count]

    def _captured(self, rows: DeviceRows, has_many_entries: bool) -> Callable[[], Tensor]:
        def step() -> Tensor:
            return self.model.lm_head(self.model.streams(GraphStep(rows, has_many_entries), self.cache))

        if self.cache.device.type != "cuda":
            return step
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):  # each writes what the step is to write: the same rows at the same places
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = step()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
