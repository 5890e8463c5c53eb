"""`python -m tests.docs_commands`: writes docs/commands.md from the options of the command line itself.

The text is made of the parser's own commands and options, not of `--help`, whose lines break at the terminal's width.
"""

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path

from holdfast.agent.cli.main import EXIT_CODES, command_line

WIDTH = 110
PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
OPENING = """\
# Commands

`holdfast` alone is `holdfast chat`; in a checkout `python -m holdfast.agent` is `holdfast`. Every command has `--help`.
What they are for: [README](../README.md), [sessions.md](sessions.md), [server.md](server.md),
[benchmarks.md](benchmarks.md). This page is written by `python -m tests.docs_commands`, and a test holds it against the
command line.
"""


def page() -> str:
    """The whole page."""
    parts = [OPENING]
    for parser, about in commands(command_line()):
        parts.append(f"## {parser.prog}\n\n{sentence(about)}\n\n```\n{usage_of(parser)}\n```\n")
        if described := [f"- `{spelling(each)}`: {each.help}\n" for each in arguments(parser) if each.help]:
            parts.append("".join(described))
    parts.append(f"## Exit codes\n\n{sentence(EXIT_CODES.removeprefix('exit codes: '))}\n")
    return "\n".join(parts)


def commands(parser: argparse.ArgumentParser, about: str = "") -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Every command that does something, with what it is for."""
    nested = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not nested:
        yield parser, about
    for subparsers in nested:
        abouts = {each.dest: each.help or "" for each in subparsers._choices_actions}
        for name, command in subparsers.choices.items():
            yield from commands(command, abouts[name])


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Positional ones first; every command has --help."""
    found = [each for each in parser._actions if not isinstance(each, argparse._HelpAction)]
    return sorted(found, key=lambda each: bool(each.option_strings))


def usage_of(parser: argparse.ArgumentParser) -> str:
    """What may be typed, optional arguments in brackets, those of which one is taken with a bar between them."""
    together = {id(each): group for group in parser._mutually_exclusive_groups for each in group._group_actions}
    parts = []
    for argument in arguments(parser):
        group = together.get(id(argument))
        some = group._group_actions if group else [argument]
        if argument is not some[0]:
            continue
        text, is_required = " | ".join(map(spelling, some)), group.required if group else not argument.option_strings
        parts.append(text if is_required and len(some) == 1 else f"({text})" if is_required else f"[{text}]")
    unbroken = " ".join(part.replace(" ", "\0") for part in [parser.prog, *parts])
    return textwrap.fill(unbroken, WIDTH, subsequent_indent="    ", break_on_hyphens=False).replace("\0", " ")


def spelling(argument: argparse.Action) -> str:
    """`--option VALUE` as it is typed."""
    value = "|".join(map(str, argument.choices)) if argument.choices else str(argument.metavar or "")
    value = {"*": f"[{value} ...]", "+": f"{value} ..."}.get(str(argument.nargs), value)
    return " ".join([*argument.option_strings, *([value] if value else [])])


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


if __name__ == "__main__":
    PAGE.write_text(page())
