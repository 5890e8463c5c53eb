"""The commands on sessions: `holdfast sessions list|show|branches|fork|rewind|move|rm|verify|gc`.

None of them needs the model.

Each gives a value for `--json` and lines for a person. Owns how a timeline is shown; what may be done to one is
memory's.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from holdfast.agent.cli.options import session_name
from holdfast.agent.config import Failure, UsageError, data_home, printable, stored_home, workspace_directory
from holdfast.agent.session.catalog import SessionCatalog
from holdfast.agent.session.left_behind import branch_line, branch_value_of, rewound_lines
from holdfast.agent.session.places import gone, is_gone
from holdfast.agent.session.restored import Part, Restored
from holdfast.agent.terminal.sanitize import neutral, one_line
from holdfast.memory import (
    BlobStore,
    Database,
    LoggedEvent,
    ResponseStore,
    SessionInfo,
    SessionInUse,
    SessionStore,
    SnapshotStore,
    StoreError,
    owner_of,
)

PROMPT_CHARS = 70
LISTED_CHARS = 40
Result = tuple[Any, list[str]]  # for --json, for a person


@contextmanager
def _open_catalog() -> Iterator[SessionCatalog]:
    home = stored_home()
    try:
        database = Database(home)
    except OSError as e:
        raise UsageError(f"data directory {home} cannot be used: {e.strerror}; set HOLDFAST_HOME") from None
    with closing(database), closing(SnapshotStore(database, BlobStore(home))) as snapshot_store:
        sessions = SessionStore(database)
        yield SessionCatalog(sessions, snapshot_store, ResponseStore(database, sessions))


def add_commands(commands: Any) -> None:
    """The parsers below `holdfast sessions`."""

    def command(
        name: str, action: Callable[[SessionCatalog, argparse.Namespace], Result], about: str
    ) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
        parser.set_defaults(command=run, action=action)
        parser.add_argument("--json", action="store_true", help="print one JSON value")
        return parser

    command("list", _list, "all sessions, the one used last first")
    show = command("show", _show, "what was asked and answered, branch by branch, and what is stored of it")
    branches = command("branches", _branches, "the branches of a session, to rewind to with --branch")
    fork = command("fork", _fork, "a new session that shares the history of another up to a turn")
    rewind = command(
        "rewind", _rewind, "go on from an earlier turn, with the files of then; what came after stays as a branch"
    )
    move = command("move", _move, "let a session go on in another directory, when its own was moved")
    remove = command("rm", _remove, "delete a session; what forks of it need stays")
    verify = command("verify", _verify, "re-read everything stored and check it")
    command("gc", _collect, "delete stored state that no session needs")
    for parser in (show, branches, fork, rewind, move, remove):
        parser.add_argument("name", metavar="NAME")
    show.add_argument("--full", action="store_true", help="all that was said and done, not a line of each turn")
    move.add_argument("directory", metavar="DIR", help="where its workspace is now")
    for parser in (fork, rewind):
        point = parser.add_mutually_exclusive_group(required=parser is rewind)
        point.add_argument("--turn", type=int, metavar="N", help="the end of this turn (0: before the first)")
        point.add_argument("--token", type=int, metavar="P", help="this position of the token log")
    point.add_argument("--branch", type=int, metavar="B", help="go back to a branch that was left")
    part = rewind.add_mutually_exclusive_group()
    part.add_argument(
        "--files", dest="part", action="store_const", const="files", default="both", help="bring only the files there"
    )
    part.add_argument(
        "--conversation", dest="part", action="store_const", const="conversation", help="leave the files as they are"
    )
    fork.add_argument("--as", dest="new_name", type=session_name, metavar="NEW", help="name of the new session")
    verify.add_argument(
        "--repair", action="store_true", help="forget what is damaged: it is computed again when needed"
    )


def run(args: argparse.Namespace) -> int:
    """One command; 1 when `verify` found damage, or could not put it right."""
    try:
        with _open_catalog() as catalog:
            value, lines = args.action(catalog, args)
    except SessionInUse as e:
        value, lines = _run_in_server(args, e)
    print(json.dumps(value) if args.json else "\n".join(map(neutral, lines)))
    return 1 if args.action is _verify and value["left"] else 0


def _run_in_server(args: argparse.Namespace, in_use: SessionInUse) -> Result:
    """`rewind` or `rm` of a session that the server of this data directory holds open: the server does it."""
    from holdfast.agent.attach.discovery import find_server  # pydantic and aiohttp: `--help` must not wait for them
    from holdfast.agent.attach.rewind import remove, rewind

    home = data_home()
    server = find_server(home)
    if server is None:
        raise in_use
    if args.action is _move:
        raise Failure(f"{in_use}; a session that the server holds open is not moved: stop the server first") from None
    if args.action is _remove:
        value = asyncio.run(remove(home, server, args.name))
        return value, _removed_lines(value)
    place = {"turn": args.turn, "token": args.token, "branch": args.branch}
    value = asyncio.run(rewind(home, server, args.name, args.part, **place))
    return value, _rewound_to_lines(value, args.part)


def _named(catalog: SessionCatalog, name: str) -> SessionInfo:
    """Raises UsageError that says which there are."""
    found = catalog.sessions.find(name)
    if found is None:
        known = ", ".join(s.name for s in catalog.sessions.all()[:5])
        raise UsageError(
            f"there is no session {printable(name)}: " + (f"known are {known}" if known else "there is none yet")
        )
    return found


def _list(catalog: SessionCatalog, args: argparse.Namespace) -> Result:
    values: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    damaged = catalog.sessions.problems()
    for session in catalog.sessions.all():
        if (owner := owner_of(session)) is None:
            try:
                values.append(catalog.summary(session))
            except StoreError as e:  # it hurts this session alone
                damaged.append(str(e))
        else:  # made by responses, not talked in: its branches are single answers
            num = catalog.responses.count(session)
            answers.append({"name": session.name, "owner": owner, "responses": num, "used_at": session.used_at})
    lines = [f"responses of {a['owner']}: {a['responses']:,}" for a in answers]
    lines += map(printable, damaged)
    if not values:
        return answers, ["there is no session yet", *lines]
    rows = [["session", "turns", "tokens", "branches", "last used", "workspace", "first prompt"]]
    for v in values:
        counts = [f"{v[key]:,}" for key in ("turns", "tokens", "branches")]
        prompt = one_line(v["first_prompt"], LISTED_CHARS)
        rows.append([v["name"], *counts, _when(v["used_at"]), printable(v["workspace"]), prompt])
    return [*values, *answers], [*_table(rows), *lines]


def _show(catalog: SessionCatalog, args: argparse.Namespace) -> Result:
    session = _named(catalog, args.name)
    branches, origin = catalog.tree(session, with_answers=True), catalog.origin(session)
    value = {
        "name": session.name,
        "workspace": session.workspace,
        "model": session.model,
        "forked_from": origin,
        "branches": branches,
    }
    lines = [f"session {session.name} · {printable(session.workspace)} · model {session.model}"]
    if is_gone(session):
        lines.append(gone(session))
    if origin:
        name = origin["name"] or "a session that was removed"
        lines.append(f"forked from {name}: {origin['turns']} turns and {origin['tokens']:,} tokens are shared with it")
    for b in branches:
        lines += _branch_lines(b, _full_turns(catalog, session, b["id"]) if args.full else None)
    return value, lines


def _full_turns(catalog: SessionCatalog, session: SessionInfo, branch: int) -> dict[int, list[str]]:
    """All that was said and done in each turn of a branch."""
    lines: dict[int, list[str]] = {}
    for event in catalog.sessions.events(session, branch):
        text = _event_text(event)
        lines.setdefault(event.turn, []).extend(f"          {line}" for line in text.split("\n") if text)
    return lines


def _event_text(event: LoggedEvent) -> str:
    """An event as it is shown in full; nothing for one that repeats others."""
    match event.type, event.payload:
        case "user", {"text": text}:
            return f"> {text}"
        case (("text" | "thinking"), {"delta": text}):
            return str(text)
        case "tool_call", {"name": name, "arguments": arguments}:
            return f"· {name} {arguments}"
        case ("tool_result", {"output": text}) | (("notice" | "error"), {"message": text}):
            return f"  {text}"
    return ""


def _branches(catalog: SessionCatalog, args: argparse.Namespace) -> Result:
    tree = catalog.tree(_named(catalog, args.name))
    values = [branch_value_of(branch) for branch in tree]
    return values, [branch_line(value) for value in values]


def _move(catalog: SessionCatalog, args: argparse.Namespace) -> Result:
    directory = workspace_directory(args.directory)
    session = catalog.sessions.move(_named(catalog, args.name), str(directory))
    value = {"name": session.name, "workspace": session.workspace}
    return value, [f"{session.name} goes on in {printable(session.workspace)}"]


def _branch_lines(branch: dict[str, Any], full: dict[int, list[str]] | None) -> list[str]:
    origin = f" from turn {branch['parent_turn']} of branch {branch['parent']}" if branch["parent"] else ""
    stored = f", stored up to token {branch['stored_at'][-1]:,}" if branch["stored_at"] else ", nothing stored"
    mark = "* " if branch["is_current"] else "  "
    lines = [f"{mark}branch {branch['id']}{origin}: {branch['tokens']:,} tokens{stored}"]
    for t in branch["turns"]:
        state = "" if t["state"] == "done" else f" ({t['state']})"
        prompt = one_line(t["prompt"], PROMPT_CHARS)
        lines.append(
            f"    {t['number']:>4}  {_when(t['started_at'])}  {t['start']:>9,} - {t['end']:>9,}  {prompt}{state}"
        )
        if full is not None:
            lines += full.get(t["number"], [])
        elif t["answer"]:
            lines.append(f"{'':48}{one_line(t['answer'], PROMPT_CHARS)}")
    return lines


def _fork(catalog: SessionCatalog, args: argparse.Namespace) -> Result:
    new = catalog.fork(_named(catalog, args.name), args.turn, args.token, args.new_name)
    branch = next(b for b in catalog.sessions.branches(new) if b.is_current)
    value = {"name": new.name, "from": args.name, "turns": branch.last_turn, "tokens": branch.num_tokens}
    return value, [
        f"{new.name}: {branch.last_turn} turns, {branch.num_tokens:,} tokens; open it with --session {new.name}"
    ]


def _rewind(catalog: SessionCatalog, args: argparse.Namespace) -> Result:
    session = _named(catalog, args.name)
    log = catalog.sessions.open(session)
    try:
        if log.open_turn is not None:
            raise StoreError(f"turn {log.open_turn} of {args.name} was interrupted: open the session once to close it")
        from holdfast.agent.cli.rewind import rewound  # loads the tools, which only this command needs

        restored = rewound(session, log, (args.turn, args.token, args.branch), args.part)
        if args.part != "files" and args.branch is None:
            catalog.rewound(session, log)
        value = {
            "name": args.name,
            "branch": log.session.branch,
            "turns": log.num_turns,
            "tokens": len(log.ids),
            **restored.value(),
        }
    finally:
        log.close()
    return value, _rewound_to_lines(value, args.part)


def _rewound_to_lines(value: dict[str, Any], part: Part) -> list[str]:
    place = f"turn {value['turns']} ({value['tokens']:,} tokens), on branch {value['branch']}"
    stays = f"{value['name']} stays after {place}"
    said = stays if part == "files" else f"{value['name']} goes on after {place}"
    return [said, *rewound_lines(Restored.of(value), part)]


def _remove(catalog: SessionCatalog, args: argparse.Namespace) -> Result:
    freed = catalog.remove(_named(catalog, args.name))
    value = {"name": args.name, "freed_bytes": freed.num_bytes}
    return value, _removed_lines(value)


def _removed_lines(value: dict[str, Any]) -> list[str]:
    return [f"{value['name']} is deleted, {_size(value['freed_bytes'])} freed"]


def _verify(catalog: SessionCatalog, args: argparse.Namespace) -> Result:
    report, damaged, repaired = catalog.verify(args.repair)
    forgotten = report.damaged if args.repair else []
    left = [*([] if args.repair else report.damaged), *damaged]
    found = [*report.damaged, *repaired, *damaged]
    value = {
        "pages": report.num_pages,
        "tails": report.num_tails,
        "bytes": report.num_bytes,
        "damaged": found,
        "forgotten": forgotten,
        "repaired": repaired,
        "left": left,
    }
    checked = f"{report.num_pages:,} pages and {report.num_tails:,} tails, {_size(report.num_bytes)}"
    if not found:
        return value, [f"{checked}: all is well"]
    counts = [
        f"{len(forgotten)} forgotten, computed again when needed" if forgotten else "",
        f"{len(repaired)} repaired" if repaired else "",
        f"{len(left)} left as they are" if left and args.repair else "",
        "" if args.repair else "--repair forgets stored state and makes indexes anew",
    ]
    end = "; ".join(filter(None, counts))
    return value, [*found, f"{checked}: {len(found)} damaged; {end}"]


def _collect(catalog: SessionCatalog, args: argparse.Namespace) -> Result:
    freed, usage = catalog.snapshot_store.gc(), catalog.snapshot_store.usage()
    value = {"freed_bytes": freed.num_bytes, "bytes": usage.bytes, "budget": usage.budget}
    return value, [f"{_size(freed.num_bytes)} freed, {_size(usage.bytes)} of {_size(usage.budget)} in use"]


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _when(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(timestamp))


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"
