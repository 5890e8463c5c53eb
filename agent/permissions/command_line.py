r"""A shell's command line, read without running it: strictly for what a rule allows, generously for what one denies.

The strict reader takes one simple command whose words mean in every shell what they look like, and nothing else: no
operator, expansion, redirection, assignment or escape, no character that cannot be seen, and no program whose arguments
are commands again. What it does not understand is no fault of the line: a person is asked about it.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from shlex import quote

MAX_CHARS = 4096
# `~` and `^` stand for themselves inside a word (HEAD~1); at its beginning and after `=` or `:` a tilde is a home
# directory.
WORD = re.compile(r"""(?:[\w@%+=:,./-]|(?<=[A-Za-z0-9])[~^]|[*?]|'[^']*'|"[^"$`\\!]*")+""", re.ASCII)
PROGRAM = re.compile(r"[\w./+][\w./+-]*", re.ASCII)
GLOB_WORD = re.compile(r"[\w./][^'\"]*", re.ASCII)  # its matches begin as it does, so that none is read as an option
FILLERS = "\u115f\u1160\u3164\uffa0"  # letters without a shape

# Programs and words of the shell that run what their arguments say, and builtins that evaluate an argument (`test -v
# 'a[$(x)]'`).
CARRIER_NAMES = (
    "! . : [ [[ alias at awk bash batch bg bind break builtin bwrap busybox caller case cd chroot chrt command "
    "compgen complete compopt continue coproc crontab csh dash declare dirs disown do doas done ed elif else "
    "emacs enable entr env esac eval ex exec exit export expect fc fg fi fish flock for function gawk gdb getopts "
    "hash history if in ionice jobs ksh less let local logout ltrace man mapfile mawk more nawk nice nohup "
    "nsenter parallel perf popd printf pushd read readarray readonly return runuser screen script sed select set "
    "setarch setpriv setsid sg sh shift shopt source ssh stdbuf strace su sudo suspend systemd-run taskset tcsh "
    "test then time timeout times tmux toybox trap type typeset ulimit umask unalias unset unshare until vi view "
    "vim wait watch while xargs yash zsh { }"
)
CARRIERS = frozenset(CARRIER_NAMES.split())
# Options with which a program runs another one, or reads a configuration that says so. A long one may be shortened by
# the caller.
CARRYING_OPTIONS = {
    "cargo": "--config",
    "curl": "-K --config",
    "find": "-delete -exec -execdir -fls -fprint -fprint0 -fprintf -ok -okdir",
    "gcc": "-wrapper -specs -B",
    "git": "-c -C -O -u -x --config-env --exec --exec-path --ext-diff --git-dir --no-index --open-files-in-pager"
    " --output --receive-pack --super-prefix --textconv --upload-pack --work-tree",
    "go": "-exec --exec -toolexec --toolexec -vettool --vettool -overlay --overlay",
    "make": "-C -E -I -f --directory --eval --file --include-dir --makefile",
    "npm": "--node-options --prefix --script-shell",
    "rg": "--hostname-bin --pre",
    "rsync": "-e --rsh --rsync-path",
    "sort": "-T -o --compress-program --files0-from --output --temporary-directory",
    "tar": "-F -I --checkpoint-action --info-script --new-volume-script --rmt-command --rsh-command --to-command"
    " --use-compress-program",
    "zip": "-T -TT --test --unzip-command",
}
CARRYING_WORDS = {
    "git": "bisect config credential daemon difftool filter-branch hook instaweb maintenance mergetool send-email"
    " submodule",
    "npm": "config exec explore set x",
}
# How much of a command a rule that is offered keeps: the words before the star.
WIDENED_NAMES = (
    "pytest, ruff, mypy, eslint, tsc, npm test, cargo build, cargo check, cargo clippy, cargo test, go build, go test, "
    "go vet, git blame, git diff, git log, git show, git status"
)
WIDENED = WIDENED_NAMES.split(", ")
STAR = "*"


@dataclass(frozen=True)
class Word:
    """One word of a simple command; `has_glob` where the shell may put names of files in its place."""

    text: str
    has_glob: bool = False


STAR_WORD = Word(STAR, True)  # in a rule for any word; in a command for names that may look like options


def simple_command(line: str) -> tuple[Word, ...] | None:
    """The words of one simple command; None for whatever is more, or is not surely that."""
    if len(line) > MAX_CHARS or not _is_visible(line):
        return None
    words: list[Word] = []
    at = 0
    while at < len(line):
        if line[at] == " ":
            at += 1
            continue
        match = WORD.match(line, at)
        if match is None or (match.end() < len(line) and line[match.end()] != " "):
            return None
        word = _word(match.group())
        if word is None:
            return None
        words.append(word)
        at = match.end()
    return tuple(words) or None


def allows(pattern: str, line: str) -> bool:
    """Whether a rule with this pattern lets a command line run: the words of the pattern, `*` for one word, at its end
    for any.
    """
    wanted, words = simple_command(pattern), simple_command(line)
    if (
        wanted is None
        or words is None
        or not PROGRAM.fullmatch(words[0].text)
        or not line.strip(" ").startswith(words[0].text)
    ):
        return False
    if carries([word.text for word in words]) or words[0].has_glob or STAR_WORD in words:
        return False
    is_open = wanted[-1] == STAR_WORD
    fixed = wanted[:-1] if is_open else wanted
    if len(words) < len(fixed) or (len(words) > len(fixed) and not is_open):
        return False
    return all(
        rule == STAR_WORD or (rule.text == word.text and not word.has_glob)
        for rule, word in zip(fixed, words, strict=False)
    )


def pattern_problem(pattern: str) -> str | None:
    """Why no rule can allow commands by this pattern, or None."""
    words = simple_command(pattern)
    if words is None:
        return "it is not one plain command: operators, variables and redirections match no rule that allows"
    if any(word.has_glob and word.text != STAR for word in words):
        return "a * stands for whole words: write it between spaces"
    if words[0].text != STAR and (not PROGRAM.fullmatch(words[0].text) or carries([word.text for word in words])):
        return f"{words[0].text} can run any command that is given to it, which no rule can allow"
    return None


def carries(words: Sequence[str]) -> bool:
    """Whether a program runs what its arguments say, and not only itself."""
    program = words[0].rpartition("/")[2].lower()
    if program in CARRIERS:
        return True
    options = CARRYING_OPTIONS.get(program, "").split()
    if program == "tar" and any(
        re.fullmatch(r"-?[A-Za-z]*[FI].*", word) for word in words[1:] if not word.startswith("--")
    ):
        return True
    if program == "make" and any("=" in word for word in words[1:]):
        return True
    named = CARRYING_WORDS.get(program, "").split()
    return any(word in named for word in words[1:]) or any(_is_option(word, options) for word in words[1:])


def offered(line: str) -> str | None:
    """The pattern that a rule would have which allows this line again; None where no rule can."""
    words = simple_command(line)
    if words is None:
        return None
    texts = [word.text for word in words]
    widened = (f"{known} {STAR}" for known in WIDENED if texts[: known.count(" ") + 1] == known.split())
    pattern = next(widened, " ".join(map(quote, texts)))
    return pattern if allows(pattern, line) else None


def commands_in(line: str) -> list[list[str]]:
    """Every simple command that the line may have, as words. Nothing here is sure: it is for rules that deny."""
    plain = "".join(c for c in line if unicodedata.category(c) not in ("Cf", "Mn") and c not in FILLERS).replace(
        "\\\n", ""
    )
    plain = re.sub(r"\$\{?IFS\}?", " ", plain)
    inside = re.sub(r"\\|\$(?=['\"])", "", plain)
    split = re.split(r"""['"`;|&\n\r(){}<>]""", inside)
    found = [piece.replace(",", " ").split() for piece in split] + [piece.split() for piece in split]
    return [words for words in [*found, *_unquoted(plain)] if words]


def denies(pattern: str, line: str) -> bool:
    """Whether a rule with this pattern forbids a command line: a command in it begins with the first word, and the
    others follow.
    """
    wanted = [word for word in pattern.split() if word != STAR]
    return any(_follows(wanted, words[start:]) for words in commands_in(line) for start in _starts(words))


def is_like(text: str, pattern: str) -> bool:
    """Whether a text is the pattern, in which `*` stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split(STAR))), text, re.DOTALL) is not None


def _is_visible(line: str) -> bool:
    return all(c.isascii() or (c.isalnum() and c not in FILLERS) for c in line) and line.isprintable()


def _word(raw: str) -> Word | None:
    """A word without its quotes; None for one that may expand to an option, or to anything at all."""
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", raw)
    has_glob = "*" in unquoted or "?" in unquoted
    if raw != STAR and has_glob and not GLOB_WORD.fullmatch(raw):
        return None
    text = re.sub(r"'([^']*)'|\"([^\"]*)\"", lambda quoted: quoted.group(1) or quoted.group(2) or "", raw)
    return None if raw.startswith("=") else Word(text, has_glob)


def _is_option(word: str, options: Sequence[str]) -> bool:
    """Whether a word is one of these options, spelled with its value, in a cluster of letters or shortened."""
    name = word.partition("=")[0]
    for option in options:
        if name == option or (option.startswith("--") and len(name) > 2 and option.startswith(name)):
            return True
        is_letter = len(option) == 2 and option[0] == "-"
        if is_letter and re.match(rf"-[A-Za-z0-9]*{option[1]}", word) and not word.startswith("--"):
            return True
    return False


def _unquoted(line: str) -> Iterator[list[str]]:
    """Commands with quotes and escapes taken away, and what was quoted left as one word."""
    words: list[str] = []
    word, quoted, is_escaped = "", "", False
    for c in f"{line}\n":
        if is_escaped:
            word, is_escaped = word + c, False
        elif c == "\\" and quoted != "'":
            is_escaped = True
        elif c == quoted:
            quoted = ""
        elif quoted:
            word += c
        elif c in "'\"":
            quoted = c
        elif c.isspace() or c in "`;|&(){}<>":
            words += [word] if word else []
            word = ""
            if c in "`;|&(){}<>\n\r":
                yield words
                words = []
        else:
            word += c
    yield [*words, word] if word else words


def _starts(words: Sequence[str]) -> Iterator[int]:
    """Where a command may begin among these words: after assignments, and anywhere behind what runs others."""
    start = 0
    while start < len(words) and re.match(r"\w+\+?=", words[start]):
        start += 1
    yield start
    if start < len(words) and carries(words[start:]):
        yield from range(start + 1, len(words))


def _follows(wanted: Sequence[str], words: Sequence[str]) -> bool:
    if not wanted:
        return True
    if not words or not (is_like(words[0], wanted[0]) or is_like(words[0].rpartition("/")[2], wanted[0])):
        return False
    rest = iter(words[1:])
    return all(any(is_like(word, each) for word in rest) for each in wanted[1:])
