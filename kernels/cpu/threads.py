"""Splits the rows of kernels over the threads that torch is allowed; few rows stay on the calling thread.

Waking a thread costs as much as a small kernel. So kernels of many rows wait, and each thread then runs all of them for
its share of the rows: `settle` is the barrier. Call it before a kernel that reads other rows
than its own, and before Python reads an array. Each calling thread has its own waiting kernels.
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

SHARE_OF_ROWS = 16  # shares are multiples of this: the row tile of attention and of the indexer


class _Waiting(threading.local):
    def __init__(self) -> None:
        self.num_rows = 0
        self.by_rows: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        self.afterwards: list[tuple[Callable[..., None], tuple[object, ...]]] = []


_waiting = _Waiting()


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="holdfast-kernel")


def over_rows(kernel: Callable[..., None], num_rows: int, *args: object) -> None:
    """Run kernel(start, stop, *args) over shares of range(num_rows): few rows now, many at the next `settle`."""
    if num_rows <= SHARE_OF_ROWS or torch.get_num_threads() == 1:
        kernel(0, num_rows, *args)
        return
    if num_rows != _waiting.num_rows:
        settle()
    _waiting.num_rows = num_rows
    _waiting.by_rows.append((kernel, args))


def afterwards(kernel: Callable[..., None], *args: object) -> None:
    """Call kernel(*args) after all waiting kernels have run."""
    if _waiting.by_rows:
        _waiting.afterwards.append((kernel, args))
    else:
        kernel(*args)


def settle() -> None:
    """Run all waiting kernels."""
    if not _waiting.by_rows:
        return
    num_rows, by_rows, last = _waiting.num_rows, _waiting.by_rows, _waiting.afterwards
    _waiting.by_rows, _waiting.afterwards = [], []
    threads = torch.get_num_threads()
    share = -(-num_rows // (threads * SHARE_OF_ROWS)) * SHARE_OF_ROWS
    starts = range(share, num_rows, share)
    others = [_pool(threads - 1).submit(_run_share, by_rows, at, min(at + share, num_rows)) for at in starts]
    _run_share(by_rows, 0, min(share, num_rows))
    for other in others:
        other.result()
    for kernel, args in last:
        kernel(*args)


def _run_share(kernels: list[tuple[Callable[..., None], tuple[object, ...]]], start: int, stop: int) -> None:
    for kernel, args in kernels:
        kernel(start, stop, *args)
