"""The one place that chooses which implementation of an op runs.

An op is a torch function, its twin, which is the specification and runs anywhere, and siblings under the same name and
signature: a function in `kernels.cpu` compiled for this machine, and one day a launcher of a Triton kernel (`twin`).
Twins take `num`, what `official` numerics round inside; compiled kernels round nothing but stored rows.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels import attention, compress, hyper, indexer, moe, project
from kernels.cpu import attention as cpu_attention
from kernels.cpu import compress as cpu_compress
from kernels.cpu import hyper as cpu_hyper
from kernels.cpu import indexer as cpu_indexer
from kernels.cpu import jit
from kernels.cpu import moe as cpu_moe
from kernels.cpu import project as cpu_project
from kernels.cpu.threads import settle
from kernels.rounding import Rounding

SIBLINGS = (
    (hyper, cpu_hyper, ("embed", "hc_pre", "hc_post", "head")),
    (project, cpu_project, ("rope_table", "project", "output")),
    (compress, cpu_compress, ("block_rows", "complete_blocks", "store")),
    (indexer, cpu_indexer, ("select",)),
    (attention, cpu_attention, ("attend",)),
    (moe, cpu_moe, ("moe",)),
)


class Ops:
    """The ops of a model, all of one kind; between them values are whatever arrays that kind works on."""

    embed: Callable[..., Any]
    hc_pre: Callable[..., Any]
    hc_post: Callable[..., Any]
    head: Callable[..., Any]
    rope_table: Callable[..., Any]
    project: Callable[..., Any]
    output: Callable[..., Any]
    block_rows: Callable[..., Any]
    complete_blocks: Callable[..., Any]
    store: Callable[..., Any]
    select: Callable[..., Any]
    attend: Callable[..., Any]
    moe: Callable[..., Any]
    compiles = False  # the first steps compile kernels, which takes half a minute

    def __init__(self, num: Rounding, compiled: bool = jit.AVAILABLE):
        self.num, self.compiled = num, compiled and not num.official
        if self.compiled:
            self.compiles = not jit.keep_machine_code()
        for twins, siblings, names in SIBLINGS:
            for name in names:
                reference = functools.partial(getattr(twins, name), num=num)
                setattr(self, name, getattr(siblings, name) if self.compiled else reference)

    def array(self, tensor: Tensor) -> Any:
        """A tensor as an argument of ops; both see the same memory where it is contiguous."""
        return tensor.contiguous().numpy() if self.compiled else tensor

    def tensor(self, array: Any) -> Tensor:
        """A result of ops as a tensor."""
        settle()
        return torch.from_numpy(array) if isinstance(array, np.ndarray) else array

    def weights(self, bundle: Any) -> Any:
        """A named tuple of weights and numbers as an argument of ops."""
        return bundle._make(self.array(x) if isinstance(x, Tensor) else x for x in bundle)


def twin(reference: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Pair the launcher of a Triton kernel with its torch twin: CUDA tensors go to the launcher, all others to the twin."""

    def pair(launcher: Callable[..., Any]) -> Callable[..., Any]:
        check_signature(launcher, reference)

        @functools.wraps(reference)
        def op(*args: Any, **kwargs: Any) -> Any:
            tensor = next(a for a in args if isinstance(a, Tensor))
            return (launcher if tensor.is_cuda else reference)(*args, **kwargs)

        return op

    return pair


def check_signature(sibling: Callable[..., Any], reference: Callable[..., Any]) -> None:
    names, own = ([n for n in inspect.signature(f).parameters if n != "num"] for f in (reference, sibling))
    assert names == own, f"{sibling.__name__}{own} is not the twin of {reference.__name__}{names}"


for _twins, _siblings, _names in SIBLINGS:
    for _name in _names:
        check_signature(getattr(_siblings, _name), getattr(_twins, _name))
