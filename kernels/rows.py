"""The rows of one step: which tokens of which sequences, at which positions, and where their state lies."""

from typing import NamedTuple

import numpy as np

Indices = np.ndarray  # int64


class Rows(NamedTuple):
    """N rows in S segments; a segment is a stretch of one sequence's tokens. All arrays are int64."""

    ids: Indices  # [N] tokens
    positions: Indices  # [N] absolute
    starts: Indices  # [S + 1] first row of each segment, then N
    slots: Indices  # [S] number of the sequence's tail
    dropped: Indices  # [S] tokens retired from the front of its page table
    pages: Indices  # [S, P] page tables, padded
    page_tokens: int
