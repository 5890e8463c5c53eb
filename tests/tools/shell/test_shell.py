"""Promises of `shell`: how a command ended is said, its output is bounded, and nothing of it outlives it."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from holdfast.tools import Cancellation, Risk
from holdfast.tools.shell import command
from holdfast.tools.shell.output import SHOWN_CHARS
from tests.tools.shell.hands import Hands, held, processes_with, until

pytestmark = pytest.mark.anyio
LEFT_BEHIND = "setsid nohup sleep 987 >/dev/null 2>&1 & (trap '' TERM HUP INT; sleep 987) & echo ready; "


async def test_the_exit_status_is_said_and_told_as_a_fact(hands: Hands) -> None:
    result = await hands.run("echo to-out; echo to-err >&2; exit 3")
    assert not result.ok and result.output.startswith("exit status 3 after ")
    assert result.output.endswith(" s\nto-out\nto-err")
    assert result.command is not None and result.command.exit_status == 3 and result.command.seconds > 0
    killed = await hands.run("kill -SEGV $$")
    assert killed.output.startswith("exit status 139 (SIGSEGV) after ") and not killed.ok
    assert (await hands.run("true")).output.endswith("\n(no output)")


async def test_a_command_that_cannot_run_is_refused_before_anyone_is_asked(hands: Hands) -> None:
    assert (await hands.permission("  ")).refusal == "command is empty; give a command line"
    assert "NUL" in str((await hands.permission("a\0b")).refusal)
    assert "too long" in str((await hands.permission("'" * 60_000)).refusal)
    assert "outside the workspace" in str((await hands.permission("ls", directory="..")).refusal)
    assert "not a directory" in str((await hands.permission("ls", directory="nowhere")).refusal)


async def test_without_a_sandbox_every_command_is_refused_and_told_why(hands: Hands) -> None:
    await hands.shell.aclose()
    refusal = "no command can run here: the session is closed"
    assert (await hands.permission("true")).refusal == refusal
    assert (await hands.run("true")).output == f"error: {refusal}"


async def test_who_decides_sees_what_runs_where_and_how_it_is_held(hands: Hands) -> None:
    permission = await hands.permission("echo a\rls\x1b[2J\nrm -rf \u202e/", directory="sub", timeout_s=9)
    assert permission.risk is Risk.EXECUTE and permission.subjects == ("echo a\rls\x1b[2J\nrm -rf \u202e/",)
    assert permission.preview == (
        "$ echo a\\rls\\x1b[2J",
        "$ rm -rf \\u202e/",
        f"in {hands.root}/sub",
        "sandbox: none",
        "ends after 9 s",
    )


async def test_long_output_is_cut_in_the_middle_and_kept_whole(hands: Hands) -> None:
    output = await hands.output("seq 1 20000")
    assert output.startswith("1\n2\n3\n") and output.endswith("\n19999\n20000")
    assert "characters are left out here; read shows them: path=output:1" in output and len(output) < SHOWN_CHARS + 200
    assert hands.shell.outputs.read("output:1") == "".join(f"{n}\n" for n in range(1, 20001))
    assert hands.shell.outputs.read("sub/output:1") is None


async def test_output_without_end_fills_neither_memory_nor_disk(
    hands: Hands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "MAX_OUTPUT_BYTES", 40 * 2**20)
    result = await hands.run("yes")
    assert not result.ok and result.output.startswith("ended because it put out more than")
    assert len(result.output) < SHOWN_CHARS + 300
    [kept] = (tmp_path / "outputs").iterdir()
    assert kept.stat().st_size < 6 * 2**20 and "characters are left out here" in kept.read_text()
    assert sum(map(len, hands.told)) < 2**20


async def test_characters_cut_by_a_chunk_stay_whole_and_other_bytes_are_replaced(hands: Hands) -> None:
    half = r"printf '\xe2\x82'; sleep 0.3; printf '\xac\n'"
    assert await hands.output(half) == "€"
    assert await hands.output(r"printf 'a\xff\x00b\x1b[31mred\x1b[0m\r\nx\ry\n'") == "a\ufffd\ufffdbred\ny"
    many = await hands.output("head -c 300000 /dev/zero | tr '\\0' 'x' | sed 's/x/ä/g'")
    assert "\ufffd" not in many
    binary = await hands.run("head -c 5000 /dev/urandom")
    assert binary.ok and binary.output.encode()


async def test_output_is_told_while_the_command_runs(hands: Hands) -> None:
    running = asyncio.ensure_future(hands.run("echo early; read line < gate; echo late", timeout_s=60))
    os.mkfifo(hands.root / "gate")
    await until(lambda: "early\n" in hands.told or running.done())
    if running.done():  # it came before the pipe was made
        running = asyncio.ensure_future(hands.run("echo early; read line < gate; echo late", timeout_s=60))
        await until(lambda: "early\n" in hands.told)
    await asyncio.to_thread((hands.root / "gate").write_text, "go\n")
    assert (await running).ok and "".join(hands.told).endswith("late\n")


async def test_a_time_out_ends_all_that_was_started(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_MARK", mark := f"time-out-{time.monotonic_ns()}")
    result = await hands.run(LEFT_BEHIND + "sleep infinity", timeout_s=1)
    assert result.output.startswith("timed out (timeout_s=1) and ended after ") and "ready" in result.output
    assert result.command is not None and result.command.exit_status is None and not result.ok
    assert processes_with(mark) == []


async def test_cancelled_everything_is_dead_and_what_came_is_kept(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_MARK", mark := f"cancel-{time.monotonic_ns()}")
    cancelled = Cancellation()
    running = asyncio.ensure_future(hands.call("shell", cancelled, command=LEFT_BEHIND + "sleep infinity"))
    await until(lambda: "ready\n" in hands.told)
    assert len(processes_with(mark)) >= 3
    cancelled.set()
    result = await running
    assert result.output.startswith("interrupted after ") and result.output.endswith("\nready") and not result.ok
    assert processes_with(mark) == []


async def test_a_command_that_ends_leaves_nothing_in_the_background(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_MARK", mark := f"end-{time.monotonic_ns()}")
    assert await hands.output(LEFT_BEHIND + "exit 0") == "ready"
    assert processes_with(mark) == []


async def test_the_directory_is_kept_and_variables_are_not(hands: Hands) -> None:
    first = await hands.run("cd sub; export KEPT=1; false")
    assert first.output.startswith("exit status 1 after ") and "; the next command runs in sub\n" in first.output
    assert await hands.output("pwd; echo [$KEPT]") == f"{hands.root}/sub\n[]"
    assert await hands.output("pwd", directory=".") == str(hands.root)
    assert await hands.output("pwd") == f"{hands.root}/sub"  # `directory` holds for its command alone
    assert "the next command runs in ." in (await hands.run("cd ..; exit 4")).output


async def test_a_directory_outside_or_deleted_is_not_kept_and_said(hands: Hands) -> None:
    assert "it ended in /, outside the workspace; the next command runs in ." in (await hands.run("cd /")).output
    assert await hands.output("pwd") == str(hands.root)
    gone = (await hands.run("mkdir x; cd x; rmdir ../x")).output
    assert "the directory in which it ended is gone; the next command runs in the workspace's root" in gone
    await hands.run("cd sub")
    (hands.root / "sub").rmdir()  # by the user, meanwhile
    assert await hands.output("pwd") == str(hands.root)


async def test_what_a_command_puts_in_the_place_of_its_directory_is_not_trusted(hands: Hands) -> None:
    secret = hands.root.parent / "secret"
    secret.write_text(str(hands.root / "sub"))
    for attack in ("ln -sf ../secret", "mkfifo", "mkdir", "printf %s /etc >"):
        name = f"$TMPDIR/.directory-{hands.shell._num_run + 1}"
        result = await hands.run(f"trap - EXIT; {attack} {name}; exit 0", timeout_s=30)
        assert result.ok, result.output
        assert await hands.output("pwd") == str(hands.root), attack


async def test_a_command_has_no_input_and_no_terminal(hands: Hands) -> None:
    assert await hands.output("cat; read line; echo [$line]; tty; stty -echo 2>&1 | wc -l; test -t 1; echo $?") == (
        "[]\nnot a tty\n1\n1"
    )
    assert not (await hands.run("echo > /dev/tty")).ok


async def test_a_background_process_that_closes_the_pipe_does_not_outlast_the_time_out(hands: Hands) -> None:
    result = await hands.run("exec >/dev/null 2>&1; sleep 987", timeout_s=1)
    assert result.output.startswith("timed out")


async def test_many_quick_commands_leave_nothing_behind(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand of them: `tests/long/commands.py`."""
    monkeypatch.setenv("LC_MARK", mark := f"quick-{time.monotonic_ns()}")
    await hands.run("true")
    before = held()
    for _ in range(12):
        await hands.run("true")
    await until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
    assert processes_with(mark) == [] and not os.listdir(hands.shell.confinement.tmp)
