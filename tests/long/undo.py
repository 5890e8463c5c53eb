"""Undo of files at length: killed at every call that changes the disk or the log, many seeds, 1,000 files.

`python -m tests.long.undo` takes a few minutes. The tests of the suite do a sample of it.
"""

import argparse
import tempfile
import time
from pathlib import Path

from tests.agent.session.test_undo import (
    every_turn_comes_back,
    killed_everywhere,
    many_files_come_back,
    nothing_of_a_person_is_lost,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for what in ("call", "undo", "rewind"):
            started = time.perf_counter()
            number = killed_everywhere(directory, what)
            print(
                f"{what}: killed at {number - 1} calls, files and log whole each time ({_since(started)})", flush=True
            )
        started = time.perf_counter()
        for seed in range(args.seeds):
            every_turn_comes_back(directory / f"turns-{seed}", seed)
            nothing_of_a_person_is_lost(directory / f"person-{seed}", seed)
        print(f"{args.seeds} sessions of 30 turns: every file of each turn came back ({_since(started)})", flush=True)
        started = time.perf_counter()
        many_files_come_back(directory / "many", 1000)
        print(f"1,000 files and 16 MB of one turn came back ({_since(started)})", flush=True)


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.0f} s"


if __name__ == "__main__":
    main()
