import os

import pytest


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """Of a process that compiles kernels instead of interpreting them."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
