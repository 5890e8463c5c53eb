"""Names of sessions: which are allowed, and the default: words of the first prompt, or the directory's name or the
fork's origin with a number.

Every name is plain ASCII: safe in a terminal, and as an argument.
"""

import re
import unicodedata
from itertools import count
from pathlib import Path

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
NAME_RULE = "1-64 letters, digits, '.', '_' or '-', the first a letter or digit"
MAX_STEM_CHARS = 40
SCANNED_CHARS = 400  # of a prompt, which may contain a whole file


def name_from_prompt(taken: set[str], prefix: str, prompt: str) -> str | None:
    """`where-is-forward-defined`, with `-2` if that is taken; None for a prompt without words."""
    paragraph = prompt[:SCANNED_CHARS].strip().partition("\n\n")[0]  # attached files and piped input come after it
    plain = unicodedata.normalize("NFKD", paragraph.casefold())
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    stem = ""
    for word in re.findall(r"[a-z0-9]+(?:[._][a-z0-9]+)*", plain, re.ASCII):
        longer = f"{stem}-{word}" if stem else word[:MAX_STEM_CHARS].rstrip("._")
        if len(longer) > MAX_STEM_CHARS:
            break
        stem = longer
    if not stem:
        return None
    stem = prefix + stem
    return stem if stem not in taken else _numbered(taken, stem, 2)


def name_from_workspace(taken: set[str], prefix: str, workspace: str) -> str:
    """`project-1`, `project-2`, ... for a workspace /home/me/project."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(workspace).name).strip("-._")[:50] or "session"
    return _numbered(taken, prefix + stem, 1)


def name_of_fork(taken: set[str], name: str) -> str:
    """The origin's name with the next free number: `project-2` from `project-1`."""
    return _numbered(taken, re.sub(r"-\d+$", "", name), 2)


def _numbered(taken: set[str], stem: str, first: int) -> str:
    return next(name for number in count(first) if (name := f"{stem}-{number}") not in taken)
