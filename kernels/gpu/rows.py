"""The rows of a step on the device: `holdfast.kernels.rows.Rows` as tensors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from holdfast.kernels.rows import Rows


class DeviceRows(NamedTuple):
    """As `Rows`, and the segment of each row.

    A captured graph has rows for which no segment is there: they compute nothing of use and write nothing that is kept.
    """

    ids: Tensor  # int32 [N]
    positions: Tensor  # int64 [N]
    owners: Tensor  # int32 [N]: the row's segment, -1 for a row that is padding
    starts: Tensor  # int32 [S + 1]
    slots: Tensor  # int32 [S]
    dropped: Tensor  # int64 [S]
    pages: Tensor  # int32 [S, P]
    page_tokens: int


def owners(rows: Rows) -> np.ndarray:
    """The segment of each row, [N]."""
    return np.repeat(np.arange(len(rows.slots)), np.diff(rows.starts))


def to_device(rows: Rows, device: torch.device) -> DeviceRows:
    def tensor(values: np.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(values).to(device, dtype)

    return DeviceRows(
        tensor(rows.ids, torch.int32),
        tensor(rows.positions, torch.int64),
        tensor(owners(rows), torch.int32),
        tensor(rows.starts, torch.int32),
        tensor(rows.slots, torch.int32),
        tensor(rows.dropped, torch.int64),
        tensor(rows.pages, torch.int32),
        rows.page_tokens,
    )
