"""Where a model runs: on a CPU in float32, or on a GPU with packed weights and rows and Triton's kernels."""

import os
from dataclasses import dataclass

import torch

from holdfast.engine.errors import EngineError
from holdfast.engine.numerics import Numerics

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Placement:
    """`runs_triton` on a CPU device means Triton's interpreter, which is slow and there to test the kernels."""

    device: torch.device
    runs_triton: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def memory_bytes(self) -> int:
        """Memory for a model and its state: what is free on the GPU, or all that the machine has."""
        if self.is_gpu:
            return torch.cuda.mem_get_info(self.device)[0]
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def numerics(self, name: str) -> Numerics:
        """The numerics to compute in; `auto` is `compact` on a CPU and `official` on a GPU. Raises EngineError."""
        if name == "auto":
            return Numerics("official" if self.runs_triton else "compact")
        if self.runs_triton and name != "official":
            raise EngineError(f"numerics {name!r} runs on a CPU only: use device cpu, or official")
        return Numerics(name)


CPU = Placement(torch.device("cpu"))


def place(device: str, rank: int = 0) -> Placement:
    """The placement of a rank for a setting of DEVICES. Raises EngineError when there is no such device."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return CPU
    from holdfast.kernels.gpu import jit

    if torch.cuda.is_available() and jit.AVAILABLE:
        if rank >= torch.cuda.device_count():
            raise EngineError(f"rank {rank} has no GPU: torch sees {torch.cuda.device_count()}, use as many ranks")
        torch.cuda.set_device(rank)
        return Placement(torch.device("cuda", rank), runs_triton=True)
    if device == "auto":
        return CPU
    if jit.INTERPRETED:
        return Placement(CPU.device, runs_triton=True)
    missing = "Triton is not installed" if torch.cuda.is_available() else "torch sees no CUDA GPU"
    raise EngineError(f"device 'cuda' is not there, {missing}: use auto or cpu")
