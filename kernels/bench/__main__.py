"""All cases on this machine's GPU.

    python -m holdfast.kernels.bench [--json] [--family F ...] [--seconds S] [--out FILE]

Cases come in order of value: decode at one row first. What the time does not suffice for is named at the end. Exit code
2 without a GPU.
"""

import argparse
import dataclasses
import datetime
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from holdfast.kernels.bench.case import Case
from holdfast.kernels.bench.measure import Ceilings, ceilings, measure
from holdfast.kernels.gpu import jit

FAMILIES = ("linear", "moe", "attention")
SECONDS = 450  # of the eight minutes that a run may take; the rest is for starting
Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m holdfast.kernels.bench", description="times of the GPU kernels at real shapes"
    )
    parser.add_argument("--json", action="store_true", help="print one result per line")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES, help="only these kernels")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"stop after this long (default: {SECONDS})")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also append results to FILE as they come")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available() or not jit.AVAILABLE:
        print("holdfast.kernels.bench: needs a CUDA GPU and Triton: torch sees none here", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    limits = ceilings(device)
    for row in [about(device, limits), *rows(in_order(args.family), device, limits, args.seconds)]:
        text = json.dumps(row)
        print(text if args.json else line(row), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(text + "\n")
    return 0


def about(device: torch.device, limits: Ceilings) -> Row:
    """The first row: the machine, and what it can do."""
    return {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": jit.VERSION,
        "cuda": torch.version.cuda,
        "date": datetime.date.today().isoformat(),
        **dataclasses.asdict(limits),
    }


def in_order(families: Iterable[str]) -> list[Case]:
    """The cases of these families, few rows first."""
    cases = [
        case for family in families for case in importlib.import_module(f"holdfast.kernels.bench.{family}").cases()
    ]
    return sorted(cases, key=lambda case: (case.rows > 64, case.shape.name != "flash", case.rows, case.context))


def rows(
    cases: list[Case],
    device: torch.device,
    limits: Ceilings,
    seconds: float,
    measured: Callable[[Case, torch.device, Ceilings], Row] = measure,
) -> Iterator[Row]:
    """A row for each case, an error where one fails; after `seconds` a last one that names those left out."""
    end = time.monotonic() + seconds
    for at, case in enumerate(cases):
        if time.monotonic() > end:
            yield {"left_out": [left.name for left in cases[at:]]}
            return
        try:
            yield measured(case, device, limits)
        except Exception as e:  # the others are still worth their time
            yield {"case": case.name, "error": f"{type(e).__name__}: {e}"[:500]}
        torch.cuda.empty_cache()


def line(row: Row) -> str:
    """A row for a person."""
    if "us" not in row:
        return json.dumps(row)
    ratios = "".join(
        f", {row[f'{name}_ratio']:.2f}x of {name}" for name in ("twin", "library") if f"{name}_ratio" in row
    )
    return (
        f"{row['case']:40} {row['us']:10.1f} us, {row['share_of_floor']:5.0%} of floor, "
        f"{row['share_of_copy']:5.0%} of copy, "
        f"{row['share_of_bf16']:5.0%} of bf16{ratios}"
    )


if __name__ == "__main__":
    sys.exit(main())
