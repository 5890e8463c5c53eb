"""Times on a GPU: captured launches over rotating inputs, so that they are read from memory, not from the cache."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from holdfast.kernels.bench.case import Call, Case
from holdfast.kernels.gpu.jit import kernel, launch

WARM_UPS, LAUNCHES, REPLAYS = 20, 50, 10
ROTATED_BYTES = 200 << 20  # several times the L2 cache
MOST_COPIES = 16
COPIED_BYTES = 256 << 20


@dataclass(frozen=True)
class Ceilings:
    """What this GPU does: the floors of every case are these."""

    copy_bytes_per_s: float  # read and written
    bf16_ops_per_s: float
    fp8_ops_per_s: float
    launch_s: float  # of an empty kernel in a graph


def ceilings(device: torch.device) -> Ceilings:
    sources = [torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device) for _ in range(4)]
    targets = [torch.empty_like(source) for source in sources]
    copies: list[Call] = [partial(target.copy_, source) for source, target in zip(sources, targets)]
    copied = 2 * COPIED_BYTES / seconds(copies)[0]
    size = 8192
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    bf16 = 2 * size**3 / seconds([lambda: a @ b])[0]
    one = torch.ones((), device=device)
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    fp8 = 2 * size**3 / seconds([lambda: torch._scaled_mm(a8, b8, one, one, out_dtype=torch.bfloat16)])[0]
    return Ceilings(copied, bf16, fp8, seconds([lambda: launch(_nothing, (1,), one)])[0])


@kernel
def _nothing(x):  # type: ignore[no-untyped-def]  # its types are Triton's
    """A launch that does no work."""


def seconds(calls: list[Call]) -> tuple[float, float]:
    """Median and least seconds of a call; the calls take turns in one graph."""
    for at in range(WARM_UPS):
        calls[at % len(calls)]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for at in range(LAUNCHES):
            calls[at % len(calls)]()
    times = []
    for _ in range(REPLAYS + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / LAUNCHES)
    return statistics.median(times[1:]), min(times[1:])


def measure(case: Case, device: torch.device, limits: Ceilings) -> dict[str, Any]:
    """One row of the bench. Raises what the case raises."""
    ours = [case.build(device)]
    error = largest_error(ours[0](), case.twin(device)()) if case.twin else None
    while case.num_bytes * len(ours) < ROTATED_BYTES and len(ours) < MOST_COPIES:
        ours.append(case.build(device))
    median, least = seconds(ours)
    del ours
    floor = max(case.num_bytes / limits.copy_bytes_per_s, case.num_ops / limits.bf16_ops_per_s)
    row: dict[str, Any] = {
        "case": case.name,
        "op": case.op,
        "model": case.shape.name,
        "rows": case.rows,
        "context": case.context,
        "us": median * 1e6,
        "least_us": least * 1e6,
        "bytes": case.num_bytes,
        "ops": case.num_ops,
        "share_of_copy": case.num_bytes / median / limits.copy_bytes_per_s,
        "share_of_bf16": case.num_ops / median / limits.bf16_ops_per_s,
        "share_of_floor": floor / median,
        "largest_error": error,
    }
    for name, build in (("twin", case.twin), ("library", case.library)):
        if build is not None:
            row[f"{name}_ratio"] = _eager_seconds(build(device)) / median
    return row


def largest_error(got: Any, expected: Any) -> float:
    """The largest difference of results, relative to the largest expected value."""
    if isinstance(got, tuple):
        return max(largest_error(g, e) for g, e in zip(got, expected))
    scale = expected.float().abs().max().item() if expected.numel() else 0.0
    return (got.float() - expected.float()).abs().max().item() / max(scale, 1e-30) if got.numel() else 0.0


def _eager_seconds(call: Callable[[], object]) -> float:
    """Median seconds of a call that cannot be captured, such as a twin that looks at values."""
    times: list[float] = []
    for _ in range(5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[1:])
