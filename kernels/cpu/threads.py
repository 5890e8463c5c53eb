"""Splits the rows of a kernel over the threads that torch is allowed; few rows stay on the calling thread."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

SHARE_OF_ROWS = 16  # shares are multiples of this: the row tile of attention


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="holdfast-kernel")


def over_rows(kernel: Callable[..., None], num_rows: int, *args: object) -> None:
    """kernel(start, stop, *args) for shares of range(num_rows)."""
    if num_rows <= SHARE_OF_ROWS or (threads := torch.get_num_threads()) == 1:
        kernel(0, num_rows, *args)
        return
    share = -(-num_rows // (threads * SHARE_OF_ROWS)) * SHARE_OF_ROWS
    starts = range(share, num_rows, share)
    others = [_pool(threads - 1).submit(kernel, at, min(at + share, num_rows), *args) for at in starts]
    kernel(0, min(share, num_rows), *args)
    for other in others:
        other.result()
