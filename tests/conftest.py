"""Without a CUDA GPU, skips what is marked `gpu`, and lets Triton's kernels run in its interpreter.

On a new machine one process compiles the CPU kernels before the tests: later all would, and their sessions would say
so.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

from holdfast.kernels.dispatch import jit  # not from holdfast.kernels.cpu: the kernels have to be imported too


def pytest_sessionstart(session: pytest.Session) -> None:
    # a job in the background or of nohup ignores these, and so would every process that a test starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    is_worker = hasattr(session.config, "workerinput")
    num_needed = jit.num_kernels() - 4  # four are for several ranks
    if jit.AVAILABLE and not is_worker and jit.num_stored() < num_needed:
        with TemporaryDirectory() as home:
            command = [sys.executable, "-m", "holdfast.agent", "run", "--workspace", home, "hello"]
            environment = {**os.environ, "HOLDFAST_HOME": f"{home}/home"}
            subprocess.run(command, cwd=Path(__file__).parents[1], env=environment)  # the tests say what is wrong


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
