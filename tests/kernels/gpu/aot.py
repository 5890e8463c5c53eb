"""Compiles the kernels of the bench's cases ahead of time and prints a JSON line for each.

    python -m tests.kernels.gpu.aot 90 FAMILY [MODEL...]

Of the numbers of rows, one stands for all that get the same tiles.

In a process of its own, because kernels that run in the interpreter cannot be compiled. Registers and spills are read
from the machine code with the tools that Triton brings.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton

from holdfast.kernels.gpu.jit import compiling

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread and bytes of its stack, where spills go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(BIN / "cuobjdump"), "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", said)[1]) for name in ("REG", "STACK", "LOCAL"))
    return {"registers": registers, "spilled_bytes": max(stack, local)}


ROWS = (1, 64, 4096)


def main(capability: int, family: str, models: list[str]) -> None:
    seen: set[str] = set()
    current = ""

    def report(name: str, compiled: Any, constants: dict[str, Any]) -> None:
        digest = str(compiled.hash)
        if digest not in seen:
            seen.add(digest)
            line = {"kernel": name, "case": current, "shared_bytes": compiled.metadata.shared, "constants": constants}
            print(json.dumps(line | resources(compiled.asm["cubin"]), default=str), flush=True)

    with compiling(capability, report):
        for case in importlib.import_module(f"holdfast.kernels.bench.{family}").cases():
            if case.rows in ROWS and case.shape.name in (models or [case.shape.name]):
                current = case.name
                case.build(torch.device("meta"))()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
