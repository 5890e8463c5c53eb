"""Options of the commands, and what their values may be: a value that cannot be is one line."""

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from holdfast.agent.config import POCKET, UsageError, printable
from holdfast.agent.permissions.modes import Policy
from holdfast.memory import NAME_PATTERN, NAME_RULE

MIN_CONTEXT = 2048
MODEL_HELP = f"a model directory, an endpoint (https://HOST/v1#NAME, or a name of models.toml), or {POCKET} (default)"
POLICIES = tuple(map(str, Policy))


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
    add_model(parser)
    add_max_context(parser)
    add_ranks(parser)
    parser.add_argument(
        "--approve",
        choices=POLICIES,
        default="ask",
        help="what runs without asking; reading always does (default: ask)",
    )


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=port, default=8420, metavar="P", help="port, 0 for a free one (default: 8420)")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="a host name that the server goes by too; repeatable",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="pages of this origin may ask it (https://app.example, chrome-extension://ID); repeatable",
    )
    parser.add_argument("--users", metavar="FILE", help="JSON list of users with name and token (default: one user)")
    parser.add_argument("--workspace", metavar="DIR", help="where new agent sessions work (default: this directory)")
    add_model(parser)
    add_max_context(parser)
    add_ranks(parser)


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--context", type=int, nargs="+", metavar="N", help="context lengths in tokens")
    parser.add_argument("--model", default=POCKET, metavar="M", help=f"a model directory, or {POCKET} (default)")
    parser.add_argument("--against", choices=["transformers"], help="measure that library too, in the same run")
    parser.add_argument("--sessions", action="store_true", help="measure save, resume, fork, rewind and roll instead")
    parser.add_argument("--random", choices=["flash", "pro"], help="a real model's shapes with random weights instead")
    parser.add_argument("--layers", type=int, metavar="N", help="of the random model (default: all)")
    parser.add_argument("--experts", type=int, metavar="M", help="of each layer of the random model (default: all)")
    parser.add_argument("--json", action="store_true", help="print one result per line")


def add_permission_commands(commands: Any, function: Callable[[argparse.Namespace], int]) -> None:
    """`holdfast permissions list|add|rm`; `commands` is where commands are added."""
    actions = commands.add_parser("permissions", help="the rules of what may run").add_subparsers(
        metavar="ACTION", required=True
    )
    for name, about in (
        ("list", "the rules that hold in this workspace, and where they are kept"),
        ("add", "allow or deny something for good"),
        ("rm", "take a rule away"),
    ):
        action = actions.add_parser(name, help=about, description=about)
        action.set_defaults(command=function, action_name=name)
        if name != "list":
            action.add_argument("rule", metavar="RULE", help="as it is listed: 'allow: shell \"pytest *\"'")
            action.add_argument("--user", action="store_true", help="in every workspace, not in this one alone")
        action.add_argument("--workspace", metavar="DIR", help="the workspace (default: this directory)")


def session_name(text: str) -> str:
    """A name that a session may get."""
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError(f"{text!a} cannot be a session's name: take {NAME_RULE}")
    return text


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=POCKET, metavar="M", help=MODEL_HELP)


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
