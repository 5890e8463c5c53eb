"""Options that several commands take, and what their values may be: a value that cannot be is one line."""

import argparse
import re
import sys
from typing import NoReturn, Protocol

from holdfast.agent.config import POCKET, UsageError, printable
from holdfast.memory import NAME_PATTERN, NAME_RULE

MIN_CONTEXT = 2048
POLICIES = ("ask", "read", "edit", "all")


class TextOutput(Protocol):
    def write(self, text: str, /) -> object: ...


class Parser(argparse.ArgumentParser):
    """Argument errors are one line, like all bad input."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: TextOutput | None = None) -> None:
        """argparse would not say that help cannot be written."""
        (file or sys.stderr).write(message)


def add_session_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--session",
        type=session_name,
        metavar="NAME",
        help="open or create this session (default: the workspace's latest)",
    )
    parser.add_argument("--new", action="store_true", help="start a fresh session")
    parser.add_argument("--workspace", metavar="DIR", help="the directory to work in (default: this one)")
    parser.add_argument("--model", default=POCKET, metavar="M", help=f"a model directory, or {POCKET} (default)")
    add_max_context(parser)
    add_ranks(parser)
    parser.add_argument(
        "--approve",
        choices=POLICIES,
        default="ask",
        help="what runs without asking; reading always does (default: ask)",
    )


def session_name(text: str) -> str:
    """A name that a session may get."""
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError(f"{text!a} cannot be a session's name: take {NAME_RULE}")
    return text


def add_max_context(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-context", type=tokens, metavar="N", help="tokens in the window (default: what the model supports)"
    )


def port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{printable(text)} is not a port: take 0 to 65535")
    return int(text)


def add_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", type=ranks, default=1, metavar="N", help="processes that share the model's weights (default: 1)"
    )


def tokens(text: str) -> int:
    """A number of tokens; at least some pages, or nothing could roll."""
    if not text.isascii() or not text.isdigit() or int(text) < MIN_CONTEXT:
        raise argparse.ArgumentTypeError(f"{printable(text)} is not a whole number of at least {MIN_CONTEXT}")
    return int(text)


def ranks(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{printable(text)} is not a whole number of at least 1")
    return int(text)
