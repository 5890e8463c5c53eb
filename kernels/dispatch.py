"""The one place that chooses which implementation of an op runs.

An op is a torch function, its twin, which is the specification and runs anywhere, and siblings under the same name and
signature: a function in `holdfast.kernels.cpu` compiled for this machine, and a launcher of Triton kernels in
`holdfast.kernels.gpu`. Twins take `num`, what `official` numerics round inside. Compiled CPU kernels round nothing but
stored rows, Triton kernels are `official`.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.kernels import attention, compress, hyper, indexer, moe, project
from holdfast.kernels.cpu import attention as cpu_attention
from holdfast.kernels.cpu import compress as cpu_compress
from holdfast.kernels.cpu import hyper as cpu_hyper
from holdfast.kernels.cpu import indexer as cpu_indexer
from holdfast.kernels.cpu import jit
from holdfast.kernels.cpu import moe as cpu_moe
from holdfast.kernels.cpu import project as cpu_project
from holdfast.kernels.cpu.threads import settle
from holdfast.kernels.gpu.rows import to_device
from holdfast.kernels.rounding import Rounding
from holdfast.kernels.rows import Rows

# Twins, compiled siblings, and the module of Triton launchers, which is loaded when needed: Triton may be absent.
SIBLINGS = (
    (hyper, cpu_hyper, "holdfast.kernels.gpu.hyper", ("embed", "hc_pre", "hc_post", "hc_next", "lm_head")),
    (
        project,
        cpu_project,
        "holdfast.kernels.gpu.project",
        ("rope_table", "project", "output", "output_low", "output_columns"),
    ),
    (compress, cpu_compress, "holdfast.kernels.gpu.compress", ("block_rows", "complete_blocks", "store")),
    (indexer, cpu_indexer, "holdfast.kernels.gpu.indexer", ("select",)),
    (attention, cpu_attention, "holdfast.kernels.gpu.attention", ("attend",)),
    (moe, cpu_moe, "holdfast.kernels.gpu.moe", ("moe", "moe_hidden", "moe_columns")),
)
WHOLE, IN_PARTS = (
    ("output", "moe"),
    ("output_low", "output_columns", "moe_hidden", "moe_columns"),
)  # one rank, or several
KINDS = ("torch", "cpu", "gpu")
CPU = torch.device("cpu")


class Ops:
    """The ops of a model, all of one kind; values pass between them as the arrays of that kind."""

    embed: Callable[..., Any]
    hc_pre: Callable[..., Any]
    hc_post: Callable[..., Any]
    hc_next: Callable[..., Any]
    lm_head: Callable[..., Any]
    rope_table: Callable[..., Any]
    project: Callable[..., Any]
    output: Callable[..., Any]
    output_low: Callable[..., Any]
    output_columns: Callable[..., Any]
    block_rows: Callable[..., Any]
    complete_blocks: Callable[..., Any]
    store: Callable[..., Any]
    select: Callable[..., Any]
    attend: Callable[..., Any]
    moe: Callable[..., Any]
    moe_hidden: Callable[..., Any]
    moe_columns: Callable[..., Any]

    def __init__(self, num: Rounding, kind: str = "", device: torch.device = CPU):
        """`kind` is one of KINDS; by default what is fastest on a CPU."""
        self.num, self.kind = num, kind or ("cpu" if jit.AVAILABLE and not num.official else "torch")
        self.device = device
        self.not_kept = ""  # why machine code is not kept for the next start
        assert self.kind in KINDS and num.official >= (self.kind == "gpu"), f"{self.kind} ops are not for {num}"
        if self.kind == "cpu":
            self.not_kept = jit.keep_machine_code()
        for twins, compiled, launchers, names in SIBLINGS:
            module = importlib.import_module(launchers) if self.kind == "gpu" else compiled
            for name in names:
                reference = getattr(twins, name)
                if self.kind == "torch":
                    setattr(self, name, functools.partial(reference, num=num))
                else:
                    check_signature(getattr(module, name), reference)
                    setattr(self, name, getattr(module, name))

    def compiling(self, num_ranks: int, report: Callable[[int, int], None]) -> AbstractContextManager[None]:
        """Inside, `report(number, total)` is called before each CPU kernel is compiled, which takes seconds."""
        total = jit.num_kernels() - len(WHOLE if num_ranks > 1 else IN_PARTS)
        return jit.on_compile(lambda: report(jit.num_ready() + 1, total))

    def array(self, tensor: Tensor) -> Any:
        """A tensor as an argument of ops; on a CPU both see the same memory where it is contiguous."""
        if self.kind == "cpu":
            return tensor.contiguous().numpy()
        return tensor.to(self.device) if self.kind == "gpu" else tensor

    def tensor(self, array: Any) -> Tensor:
        """A result of ops as a tensor."""
        settle()
        return torch.from_numpy(array) if isinstance(array, np.ndarray) else array

    def weights(self, bundle: Any) -> Any:
        """A named tuple of weights and numbers as an argument of ops; a part of it may be such a tuple itself."""
        return bundle._make(self._weight(x) for x in bundle)

    def rows(self, rows: Rows) -> Any:
        """The rows of a step as an argument of ops."""
        return to_device(rows, self.device) if self.kind == "gpu" else rows

    def _weight(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.array(value)
        return self.weights(value) if hasattr(value, "_make") else value


def check_signature(sibling: Callable[..., Any], reference: Callable[..., Any]) -> None:
    names, own = ([n for n in inspect.signature(f).parameters if n != "num"] for f in (reference, sibling))
    assert names == own, f"{sibling.__name__}{own} is not the twin of {reference.__name__}{names}"
