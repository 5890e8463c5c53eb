"""The command `holdfast`: arguments in, exit code out (`EXIT_CODES`).

Owns the options and what each subcommand needs. Loads the engine and the terminal inside the subcommands that use them:
they take seconds, and `--help` must not wait.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.agent import VERSION, streams
from holdfast.agent.cli import backup, sessions
from holdfast.agent.cli.options import (
    Parser,
    add_bench_options,
    add_permission_commands,
    add_serve_options,
    add_session_options,
)
from holdfast.agent.cli.prompt import read_prompt
from holdfast.agent.cli.workspaces import chosen_workspace
from holdfast.agent.config import (
    POCKET,
    POCKET_DIR,
    Failure,
    Settings,
    UsageError,
    check_working_directory,
    data_home,
    disk_budget,
    is_text,
    model_directory,
    output_limit,
    printable,
    prompt_problem,
)
from holdfast.agent.encoding.encode import EncodingError
from holdfast.agent.permissions.modes import Mode, Policy
from holdfast.agent.terminal.mode import TerminalMode
from holdfast.memory import StoreError

if TYPE_CHECKING:
    from holdfast.agent.attach.discovery import Server
    from holdfast.agent.models.remote.endpoint import Endpoint

EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 bad usage, 3 a call that was needed was refused, 130 interrupted (Ctrl-C),"
    " 143 ended (SIGTERM)"
)
TERMINATED = 128 + signal.SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Only `--help` and `--version` leave by SystemExit."""
    if not streams.prepare():
        streams.say("stdout is closed: there is nowhere to show anything")
        return 1
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "chat")
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except OSError as e:
        streams.give_up_output(e)
        return 1


def _run(arguments: list[str]) -> int:
    """As `main`. Raises OSError when the output cannot be written."""
    fails = _fails_in_json if _wants_json(arguments) else _fails
    if fails is _fails_in_json:
        streams.print_json_as_utf8()
    try:
        args = command_line().parse_args(arguments)
        check_working_directory()
        code: int = args.command(args)
        return code
    except UsageError as e:
        return fails(str(e), 2)
    except (Failure, StoreError, EncodingError) as e:
        return fails(str(e), 1)
    except (KeyboardInterrupt, asyncio.CancelledError):  # the second: Ctrl-C where a person is asked
        return 130
    except OSError as e:
        if isinstance(e, BrokenPipeError) or streams.is_output_lost():
            raise
        return fails(f"{e.filename}: {e.strerror}" if e.filename else str(e), 1)
    except Exception as e:
        if sys.flags.dev_mode:
            raise
        return fails(f"a fault of holdfast: {type(e).__name__}: {e}; PYTHONDEVMODE=1 shows where", 1)


def _fails(message: str, code: int) -> int:
    streams.say(message)
    return code


def _fails_in_json(message: str, code: int) -> int:
    _print_as_event("error", message)
    return code


def _print_as_event(kind: str, message: str) -> None:
    """As `--json` shows an event, before anything is loaded that knows them."""
    print(json.dumps({"type": kind, "message": message}), flush=True)


def _wants_json(arguments: list[str]) -> bool:
    """Whether the output is for a program, which then reads there what failed, before arguments are understood too."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def command_line() -> Parser:
    """All commands with their options."""
    parser = Parser(prog="holdfast", description="A coding agent whose sessions never start over.", epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"holdfast {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(command=function)
        return added

    chat = command("chat", _talk, "talk in this workspace's session (the default command)")
    chat.set_defaults(prompt=None, json=False)
    add_session_options(chat)
    run = command("run", _talk, "one task, then exit")
    run.add_argument(
        "prompt", metavar="PROMPT", nargs="*", help="what to do: words, @FILE, - for stdin; a pipe is read with it"
    )
    add_session_options(run)
    run.add_argument("--json", action="store_true", help="print one event per line")
    add_serve_options(command("serve", _serve, "serve the model over HTTP and WebSocket (the OpenAI Responses API)"))
    timelines = commands.add_parser("sessions", help="the durable timelines")
    sessions.add_commands(timelines.add_subparsers(metavar="ACTION", required=True))
    add_permission_commands(commands, _permissions)
    add_bench_options(command("bench", _bench, "measure prefill and decode at several context lengths"))
    model = commands.add_parser("model", help="which models there are, and what a directory holds").add_subparsers(
        metavar="ACTION", required=True
    )
    listing = model.add_parser("list", help="what --model can name here, and what is missing for it")
    listing.set_defaults(command=_list_models)
    listing.add_argument("--json", action="store_true", help="print one model per line")
    inspect = model.add_parser("inspect", help="what it is, what it needs, what a long context costs")
    inspect.set_defaults(command=_inspect)
    inspect.add_argument("directory", metavar="DIR")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    backup.add_commands(command)
    command("doctor", _doctor, "what this machine can run, and what is missing")
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    home = data_home()
    if not is_text(str(home)):
        raise UsageError(f"data directory {printable(str(home))} is not valid UTF-8: set HOLDFAST_HOME")
    endpoint = _endpoint(args.model, home)
    directory = (endpoint.tokenizer or POCKET_DIR) if endpoint else model_directory(args.model)
    if endpoint and args.ranks > 1:
        raise UsageError("--ranks is for a model of this machine: leave it out")
    return Settings(
        home,
        directory,
        thinking_mode="thinking" if endpoint and endpoint.thinking else "chat",
        max_output_tokens=endpoint.most_output if endpoint else output_limit(directory),
        max_context=args.max_context,
        ranks=args.ranks,
        disk_bytes=disk_budget(),
        endpoint=endpoint,
    )


def _endpoint(model: str, home: Path) -> "Endpoint | None":
    """What `--model` means unless it is a directory or pocket."""
    if model == POCKET or os.path.isdir(model):
        return None
    from holdfast.agent.models.remote.catalogue import endpoint_of  # loads pydantic

    return endpoint_of(model, home)


def _server(home: Path) -> "Server | None":
    """The server of this data directory, if one runs."""
    from holdfast.agent.attach.discovery import find_server  # loads pydantic, which `--version` need not wait for

    return find_server(home)


def _talk(args: argparse.Namespace) -> int:
    """`run` has a prompt and does one turn; `chat` has none."""
    can_ask = sys.stdin.isatty() and sys.stderr.isatty() and not args.json
    settings, workspace = _settings(args), chosen_workspace(args.workspace, can_ask)
    mode = TerminalMode() if sys.stdin.isatty() else None
    if mode and args.prompt is None:
        mode.take()  # before all that takes time: what is typed meanwhile waits in the first prompt
    prompt = None if args.prompt is None else _prompt(args)
    server = _server(settings.home)
    if server is not None and server.model != settings.model_name:
        server = None
    from holdfast.agent.events import Notice
    from holdfast.agent.terminal.chat import Control, Others, talk
    from holdfast.agent.terminal.keyboard import Keyboard
    from holdfast.agent.terminal.question import ask_person
    from holdfast.agent.terminal.render import Printer

    printer = Printer()
    keyboard = Keyboard(mode, printer.note) if mode else None
    control = Control(Mode(Policy(args.approve)), partial(_rules_listed, settings.home, workspace))
    ask = partial(ask_person, keyboard, control.mode) if keyboard and can_ask else None
    show = _print_json if args.json else printer.show
    if server is not None and not (args.max_context or args.ranks > 1):
        from holdfast.agent.attach.session import attached

        if not args.json:
            printer.note(f"using the server at {server.url}")
        others = Others(printer).show if prompt is None else lambda event: None
        there = attached(settings.home, server, workspace, control.mode, ask, others)
        return asyncio.run(_until_told(talk(there, args.session, args.new, prompt, show, printer, keyboard, control)))
    if server is not None:
        option = "--max-context" if args.max_context else "--ranks"
        show(Notice(message=f"not using the server at {server.url}: {option} needs a model of its own"))
    from holdfast.agent.app import sessions_here
    from holdfast.engine import EngineError

    try:
        tell = show if args.json else printer.waiting
        here = sessions_here(settings, workspace, control.mode, ask, tell)
        return asyncio.run(_until_told(talk(here, args.session, args.new, prompt, show, printer, keyboard, control)))
    except EngineError as e:
        raise Failure(str(e)) from None


def _rules_listed(home: Path, workspace: Path) -> str:
    from holdfast.agent.cli.permissions import listed  # loads the tools, which an attached terminal has none of

    return listed(home, workspace)


def _permissions(args: argparse.Namespace) -> int:
    from holdfast.agent.cli import permissions

    return permissions.run(args)


def _prompt(args: argparse.Namespace) -> str:
    tell = partial(_print_as_event, "notice") if args.json else streams.say
    prompt = read_prompt(args.prompt, tell)
    if problem := prompt_problem(prompt):
        raise UsageError(problem)
    return prompt


async def _until_told(talking: Coroutine[Any, Any, int]) -> int:
    """SIGTERM ends it as Ctrl-C ends a `run`: the turn is interrupted, and what there is of it is saved."""
    task, told = asyncio.ensure_future(talking), []

    def end() -> None:
        told.append(signal.SIGTERM)
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    try:
        return await task
    except asyncio.CancelledError:
        if told:
            return TERMINATED
        raise


def _serve(args: argparse.Namespace) -> int:
    settings, workspace = _settings(args), chosen_workspace(args.workspace, can_ask=False)
    from holdfast.agent.server.serve import serve
    from holdfast.engine import EngineError

    try:
        users = Path(args.users) if args.users else None
        return serve(settings, args.host, args.port, users, workspace, args.name, args.allow_origin)
    except EngineError as e:
        raise Failure(str(e)) from None


def _print_json(event: Any) -> None:
    sys.stdout.write(event.model_dump_json() + "\n")
    sys.stdout.flush()


def _inspect(args: argparse.Namespace) -> int:
    directory = model_directory(args.directory)
    from holdfast.engine import EngineError, inspect_model

    try:
        report = inspect_model(directory)
    except EngineError as e:
        raise Failure(str(e)) from None
    print(json.dumps(report.as_dict()) if args.json else "\n".join(report.lines()))
    return 0


def _list_models(args: argparse.Namespace) -> int:
    from holdfast.agent.cli.models import known_models

    for row in known_models(data_home()):
        print(json.dumps(row) if args.json else f"{row['name']:18} {row['kind']:16} {row['state']}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    if not args.random and (args.layers, args.experts) != (None, None):
        raise UsageError("--layers and --experts are of a random model: add --random flash or --random pro")
    directory = model_directory(args.model)
    from holdfast.engine import EngineError, run_bench, run_random_bench

    try:
        if args.random:
            for row in run_random_bench(args.random, args.layers, args.experts, args.context):
                print(json.dumps(row) if args.json else _row_line(row), flush=True)
        elif args.sessions:
            from holdfast.agent.bench.sessions import run_sessions_bench

            for row in run_sessions_bench(directory, args.context or [8192]):
                print(json.dumps(row) if args.json else _row_line(row), flush=True)
        else:
            for result in run_bench(directory, args.context, args.against == "transformers"):
                print(json.dumps(result.as_dict()) if args.json else result.line(), flush=True)
    except EngineError as e:
        raise Failure(str(e)) from None
    return 0


def _row_line(row: dict[str, Any]) -> str:
    """A row of a bench for a person."""
    values = [f"{key} {_shown(value)}" for key, value in row.items() if key != "row"]
    return f"{row['row']:22} " + ", ".join(values)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _doctor(args: argparse.Namespace) -> int:
    from holdfast.agent.cli.doctor import FAIL, findings

    failed = False
    for kind, name, state in findings(data_home()):
        print(f"{kind:4} {name}: {streams.one_line(state)}", flush=True)
        failed = failed or kind == FAIL
    return 1 if failed else 0
