"""The oracle policy pocket imitates: one task -> the tool calls and the answer, found by running the real tools.

Knows the tools' output formats and nothing of tokens. Every answer is computed from what the tool printed, so a
trajectory can never claim what a tool did not say.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.agent.pocket.phrases import DECLINE_REPLY, HELLO_REPLY, PLACES, THINGS, phrase
from holdfast.agent.pocket.repos import Repo, make_name

OUTLINE_LIMIT = 6  # symbols pocket asks for: what it can repeat without losing its place
LIST_LIMIT = 3  # definitions and files it names in an answer


@dataclass(frozen=True)
class Call:
    """One tool call of a trajectory and what the tool printed."""

    name: str
    arguments: dict[str, object]
    output: str


@dataclass(frozen=True)
class Episode:
    """A user's request, the oracle's calls and its answer. `check` is what an evaluation compares besides the text."""

    kind: str
    user: str
    calls: tuple[Call, ...]
    answer: str
    check: dict[str, object] = field(default_factory=dict)


def _call(repo: Repo, tool: str, **arguments: object) -> Call:
    return Call(tool, arguments, repo.call(tool, arguments))


def where(repo: Repo, name: str, user: str) -> Episode:
    call = _call(repo, "find_symbol", name=name)
    if call.output.startswith("no symbol"):
        return Episode("none", user, (call,), f"I found no definition of {name}.")
    places = [line.split(" ")[0] for line in call.output.splitlines() if not line.startswith("(+")]
    shown = ", ".join(places[:LIST_LIMIT]) + (" and more places" if len(places) > LIST_LIMIT else "")
    return Episode("where", user, (call,), f"{name} is defined at {shown}.", {"places": places})


def outline(repo: Repo, path: str, user: str) -> Episode:
    call = _call(repo, "outline", path=path, limit=OUTLINE_LIMIT)
    if call.output.startswith("error: no file"):
        return Episode("none", user, (call,), f"There is no file {path}.")
    if call.output.endswith(": no symbols"):
        return Episode("none", user, (call,), f"{path} has no symbols.")
    head, *lines = call.output.splitlines()
    count = head.rsplit(": ", 1)[1]
    more = bool(lines) and lines[-1].startswith("(+")
    rows = [line.split(" ", 2) for line in lines if not line.startswith("(+")]
    listed = ", ".join(f"{kind} {name} ({n})" for n, kind, name in rows)
    return Episode("outline", user, (call,), f"{path} has {count}: {listed}{' and more' if more else ''}.")


def uses(repo: Repo, name: str, user: str) -> Episode:
    call = _call(repo, "search", text=name, brief=True)
    if call.output.startswith("no matches"):
        return Episode("none", user, (call,), f"I found no uses of {name}.")
    head, *files = call.output.splitlines()
    files = [f for f in files if not f.startswith("(+")]
    shown = "; ".join(files[:LIST_LIMIT]) + (" and more" if len(files) > LIST_LIMIT else "")
    return Episode("uses", user, (call,), f"{name} has {head}: {shown}.")


def replace(repo: Repo, path: str, old: str, new: str, user: str) -> Episode:
    """Runs the edit, records it, and puts the file back: the repository is used for many tasks."""
    file = Path(repo.root, path)
    before = file.read_bytes() if file.is_file() else None
    call = _call(repo, "edit", path=path, old=old, new=new, all=True)
    if before is not None:
        after = file.read_bytes()
        file.write_bytes(before)
        _call(repo, "read", path=path, start=1, end=1)  # the tools have seen the file as it is now
    if call.output.startswith("error: no file"):
        return Episode("none", user, (call,), f"There is no file {path}.")
    if call.output.startswith("error"):
        return Episode("none", user, (call,), f"I found no {old} in {path}; nothing was changed.")
    count = call.output.splitlines()[0].rsplit(": ", 1)[1]
    check: dict[str, object] = {"path": path, "content": after.decode() if before is not None else ""}
    return Episode("replace", user, (call,), f"Replaced {old} with {new} in {path}: {count}.", check)


def read(repo: Repo, path: str, start: int, end: int, user: str) -> Episode:
    call = _call(repo, "read", path=path, start=start, end=end)
    if call.output.startswith("error: no file"):
        return Episode("none", user, (call,), f"There is no file {path}.")
    if call.output.startswith("error"):
        return Episode("none", user, (call,), f"{path} has no line {start}.")
    return Episode("read", user, (call,), f"{path}:\n{call.output}")


def _quoted(text: str, rng: random.Random) -> str:
    """People put names in quotes now and then."""
    mark = rng.choice(["`", '"', "'"]) if rng.random() < 0.12 else ""
    return f"{mark}{text}{mark}"


def _say(kind: str, split: str, slots: dict[str, object], rng: random.Random) -> str:
    quoted = {k: _quoted(str(v), rng) if k in ("name", "path", "old", "new") else v for k, v in slots.items()}
    return phrase(kind, split, rng).format(**quoted)


def make_episode(kind: str, repo: Repo, split: str, rng: random.Random) -> Episode | None:
    """A random task of `kind` on `repo`, or None when the repository offers nothing suitable."""
    slots: dict[str, object] = {
        "name": repo.symbol(rng).name,
        "path": repo.path(rng),
        "thing": rng.choice(THINGS),
        "place": rng.choice(PLACES),
        "a": rng.randint(2, 99),
        "b": rng.randint(2, 99),
    }
    missing = kind.startswith("missing_")
    kind = kind.removeprefix("missing_")
    if missing and (kind in ("where", "uses") or rng.random() < 0.5):
        slots["name"] = repo.absent_name(rng)
    elif missing:
        slots["path"] = repo.absent_path(rng)
    if kind in ("hello", "decline"):
        user = _say(kind, split, slots, rng)
        return Episode(kind, user, (), HELLO_REPLY if kind == "hello" else DECLINE_REPLY)
    if kind == "where":
        symbol = repo.symbol(rng)
        if not missing:
            slots["name"] = symbol.name if rng.random() < 0.5 else symbol.name.rsplit(".", 1)[-1]
        slots["kind"] = {"def": rng.choice(["function", "method"]), "const": "constant"}.get(symbol.kind, symbol.kind)
        return where(repo, str(slots["name"]), _say(kind, split, slots, rng))
    if kind == "outline":
        return outline(repo, str(slots["path"]), _say(kind, split, slots, rng))
    if kind == "uses":
        if not missing:
            slots["name"] = repo.used_name(rng)
        return uses(repo, str(slots["name"]), _say(kind, split, slots, rng))
    if kind == "replace":
        old = repo.word_in(str(slots["path"]), rng) if not missing else repo.absent_name(rng)
        if old is None:
            return None
        slots["old"], slots["new"] = old, repo.fresh_name(rng, like=old)
        if slots["old"] == slots["new"]:
            return None
        return replace(repo, str(slots["path"]), old, str(slots["new"]), _say(kind, split, slots, rng))
    if kind == "read":
        start, end = repo.lines_of(str(slots["path"]), rng) if not missing else (rng.randint(1, 300), 0)
        end = max(end, start)
        slots["a"], slots["b"] = start, end
        user = _say("read1" if start == end else "read", split, slots, rng)
        episode = read(repo, str(slots["path"]), start, end, user)
        return episode if len(episode.answer) <= 400 else None
    raise AssertionError(kind)


def fact_value(split: str, rng: random.Random) -> str:
    """Something a user might want remembered: a number, a word, a name."""
    if rng.random() < 0.4:
        return str(rng.randint(10, 99999))
    return make_name(split, rng, rng.choice(["snake", "snake", "Camel", "camel"]))


def tell(subject: str, value: str, split: str, rng: random.Random) -> Episode:
    user = phrase("tell", split, rng).format(fact=f"{subject} is {value}")
    return Episode("tell", user, (), f"Noted: {subject} is {value}.")


def recall(subject: str, value: str | None, split: str, rng: random.Random) -> Episode:
    user = phrase("recall", split, rng).format(subject=subject)
    if value is None:
        return Episode("none", user, (), f"You have not told me {subject}.")
    answer = f"{subject} is {value}."
    return Episode("recall", user, (), answer[0].upper() + answer[1:])
