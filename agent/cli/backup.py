"""The commands `holdfast backup` and `holdfast restore`: a data directory as one file, and back.

Neither needs the model.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.agent.config import data_home, printable, stored_home
from holdfast.memory import Copied, StoreError, back_up, restore


def add_commands(command: Callable[..., Any]) -> None:
    """`command(name, function, about)` gives a parser."""
    backup = command("backup", _backup, "copy everything stored into one file, while turns go on")
    put_back = command("restore", _restore, "put back what a backup holds")
    for parser in (backup, put_back):
        parser.add_argument("file", metavar="FILE")
    put_back.add_argument(
        "--replace", action="store_true", help="where there is a database already; it is kept under another name"
    )


def _backup(args: argparse.Namespace) -> int:
    copied = back_up(stored_home(), _file(args.file))
    print(f"{printable(args.file)}: all sessions, and {_state(copied)}")
    return 0


def _restore(args: argparse.Namespace) -> int:
    copied = restore(data_home(), _file(args.file), args.replace)
    print(f"{data_home()}: all sessions of {printable(args.file)}, and {_state(copied)}")
    return 0


def _file(name: str) -> Path:
    path = Path(name).absolute()
    if not path.parent.is_dir():
        raise StoreError(f"{printable(str(path.parent))} is not a directory: make it, or choose another file")
    return path


def _state(copied: Copied) -> str:
    left_out = f"; {copied.num_left_out:,} left out as damaged or gone, computed again when needed"
    return f"{copied.num_files:,} files of their state ({copied.num_bytes / 1e6:,.1f} MB)" + (
        left_out if copied.num_left_out else ""
    )
