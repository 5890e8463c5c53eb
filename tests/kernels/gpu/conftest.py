import os
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """Of a process that compiles kernels instead of interpreting them."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.fixture(autouse=True)
def poisoned_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not written is NaN, or no valid number."""

    def poisoned(function: Any) -> Any:
        def room(*args: Any, **options: Any) -> Tensor:
            tensor = function(*args, **options)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else -7)

        return room

    for place, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(place, name, poisoned(getattr(place, name)))
