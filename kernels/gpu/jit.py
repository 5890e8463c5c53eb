"""Where Triton is imported, and the one place that launches its kernels.

Without a GPU the kernels run in Triton's interpreter (TRITON_INTERPRET=1, set before this module is imported), on CPU
tensors. `compiling` compiles what would be launched, ahead of time for a GPU that need not be there; its tensors may be
on torch's meta device.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

try:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver, interpreter

    AVAILABLE = True
except ImportError:  # no wheel for this platform
    AVAILABLE = False

__all__ = ["AVAILABLE", "INTERPRETED", "compiling", "dot", "kernel", "launch", "next_power_of_two", "tl"]

Function = TypeVar("Function", bound=Callable[..., Any])
Compiled = Callable[[str, Any, dict[str, Any]], None]  # name of a kernel, Triton's CompiledKernel, its constants
_on_compiled: Compiled | None = None

if not AVAILABLE:
    triton = tl = None


def _dot_in_order(a: Any, b: Any, acc: Any, *_: Any) -> Any:
    """The interpreter's `tl.dot` of float32, summed over k in order.

    Its own is numpy's matmul, whose order depends on the CPU and on the number of rows: it would prove nothing of a
    kernel that promises the same bits for few rows and many.
    """
    products = a.data.T[:, :, None] * b.data[:, None, :]  # [k, m, n]
    return interpreter.TensorHandle(products.sum(0) + acc.data, acc.dtype.scalar)


VERSION = triton.__version__ if AVAILABLE else ""
INTERPRETED = AVAILABLE and triton.knobs.runtime.interpret
if INTERPRETED:
    interpreter.interpreter_builder.create_dot = _dot_in_order


def kernel(function: Function) -> Any:
    """A Triton kernel, or a function that kernels call. A count `num_...` that is an argument
    varies from step to step: no code is compiled for particular values of it."""
    if not AVAILABLE:
        return function
    varying = [name for name in inspect.signature(function).parameters if name.startswith("num_")]
    return triton.jit(function, do_not_specialize=varying)


def launch(function: Any, grid: tuple[int, ...], *args: Any, num_warps: int = 4, **constants: Any) -> None:
    """Run a kernel on a grid, of which any side may be 0.

    Fused multiply-adds are always allowed: results must not depend on the default of a Triton version.
    """
    options = {"num_warps": num_warps, "enable_fp_fusion": True}
    if _on_compiled is not None:
        compiled = function.warmup(*args, grid=(1,), **options, **constants)
        _on_compiled(function.__name__, compiled, constants)
    elif math.prod(grid):
        function[grid](*args, **options, **constants)


def next_power_of_two(n: int) -> int:
    """n rounded up to what `tl.arange` takes."""
    return 1 << (n - 1).bit_length()


@contextmanager
def compiling(capability: int, on_compiled: Compiled) -> Iterator[None]:
    """Compile instead of launching, for a compute capability such as 90. The process cannot launch any more."""
    global _on_compiled
    driver.set_active(_AbsentGPU(capability))
    _on_compiled = on_compiled
    try:
        yield
    finally:
        _on_compiled = None


class _AbsentGPU:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # keeps what was compiled for one apart from the other

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


_INTERPRETED = tl.constexpr(INTERPRETED) if AVAILABLE else None


@kernel
def dot(a, b, acc=None):
    """acc + a [m, k] . b [k, n] -> float32, of bf16, e4m3 or float32 operands.

    The interpreter multiplies the bit patterns of bf16.
    """
    if _INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc)
