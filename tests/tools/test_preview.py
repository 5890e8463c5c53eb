"""Promises of the preview of an edit: it names exactly the lines that the edit would change."""

import random
import re
from pathlib import Path

import pytest

from holdfast.tools import Context, ToolError, Workspace
from holdfast.tools.files import EditArguments, edit, edit_permission
from holdfast.tools.preview import MAX_LINES
from holdfast.tools.workspace.workspace import split_lines


def shown_and_done(root: Path, before: str, args: EditArguments) -> tuple[tuple[str, ...], str]:
    """Preview of an edit, and the file after it."""
    (root / "a.txt").write_bytes(before.encode())
    context = Context(Workspace(root))
    permission = edit_permission(args, context)
    assert (root / "a.txt").read_bytes() == before.encode()
    if permission.refusal is not None:
        with pytest.raises(ToolError, match=re.escape(permission.refusal)):
            edit(args, context)
    else:
        edit(args, context)
    return permission.preview, (root / "a.txt").read_bytes().decode()


def applied(before: str, preview: tuple[str, ...]) -> list[str]:
    """The lines that a reader of the preview expects."""
    lines: list[str | None] = list(split_lines(before))
    come: list[tuple[int, str]] = []
    for number, sign, line in (re.fullmatch("(\\d+) ([-+])(.*)", shown, re.S).groups() for shown in preview[1:]):  # type: ignore[union-attr]
        if sign == "-":
            assert lines[int(number) - 1] == line
            lines[int(number) - 1] = None
        else:
            come.append((int(number), line))
    kept = [line for line in lines if line is not None]
    for number, line in come:
        kept.insert(number - 1, line)
    return kept


def test_a_preview_is_the_edit(tmp_path: Path) -> None:
    rng, num_done = random.Random(1), 0
    for _ in range(600):
        end = rng.choice(["\n", "\r\n"])
        before = end.join(rng.choice(["", "a", "ab", "a b a", "b"]) for _ in range(rng.randint(1, 9))) + rng.choice(
            ["", end]
        )
        old, new = ("".join(rng.choices(["a", "b", " ", "\n"], k=rng.randint(1, 4))) for _ in range(2))
        args = EditArguments(path="a.txt", old=old, new=rng.choice([new, ""]), all=rng.random() < 0.7)
        preview, after = shown_and_done(tmp_path, before, args)
        assert applied(before, preview) == split_lines(after) if preview else after == before
        num_done += bool(preview)
    assert num_done > 100


def test_a_preview_has_a_head_with_counts_and_is_bounded(tmp_path: Path) -> None:
    args = EditArguments(path="a.txt", old="x", new="y", all=True)
    preview, _ = shown_and_done(tmp_path, "x\n" * 1000, args)
    assert preview[0] == "a.txt: 1000 replacements, +1000 -1000"
    assert len(preview) == MAX_LINES + 2 and preview[-1] == "(more lines change)"
    preview, _ = shown_and_done(tmp_path, "x " * 100_000, args)
    assert sum(map(len, preview)) < 2000 and preview[1].endswith(" …(cut)")
