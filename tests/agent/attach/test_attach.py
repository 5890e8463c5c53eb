"""Promises of a terminal that uses a running server: one model, one live session, several clients, and nothing lost.

Servers and clients are real processes of the real command line. A script stands for the model where a turn must wait,
ask or hang; where state counts, it is pocket.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from holdfast.agent.attach.discovery import find_server
from tests.agent.place import Place
from tests.agent.real_session import ASK, KNOWN, TELL
from tests.agent.scripted_engine import HANG, calls, says
from tests.agent.terminal.test_render import READY, ROOT

EDIT = calls("edit", path="a.py", old="fox", new="cat")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


def until(process: "subprocess.Popen[str]", event_type: str) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if (event := json.loads(line))["type"] == event_type:
            return dict(event)
    raise AssertionError(process.communicate()[1])


def shape(events: list[dict[str, Any]]) -> list[Any]:
    """Types and fields, without repeats: pieces of text differ from run to run."""
    return list(dict.fromkeys((event["type"], *event, *event.get("usage", ())) for event in events))


def test_a_run_uses_the_server_and_its_session_stays_in_memory(place: Place) -> None:
    place.serve()
    server = find_server(place.home)
    process = place.start("run", TELL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "Noted: the staging port is 4711.\n"
    assert server is not None and err.splitlines()[0] == f"using the server at {server.url}"
    assert "tokens in (" in err.splitlines()[1] and len(err.splitlines()) == 2
    code, asked, err = place.run(ASK)
    assert code == 0 and err == "" and asked[-1]["text"].strip() == KNOWN
    usage = asked[-1]["usage"]
    assert (asked[-1]["turn"], usage["prefilled_again"], usage["from_disk"]) == (2, 0, 0)
    assert usage["from_memory"] + usage["new"] == usage["input_tokens"] and usage["from_memory"] > 50
    code, own, _ = place.run(ASK, "--new", "--max-context", "4096")
    assert code == 0 and own[0]["type"] == "notice" and "--max-context needs a model of its own" in own[0]["message"]
    assert shape(own[1:]) == shape(asked)


def test_attaching_loads_no_engine_and_no_tools(place: Place) -> None:
    place.script(says("One.")).serve()
    program = "import sys, holdfast.agent.cli.main\nprint(holdfast.agent.cli.main.main(sys.argv[1:]))\n"
    program += (
        "print([m for m in ('torch', 'numpy', 'holdfast.engine', 'holdfast.tools', 'tree_sitter') if m in sys.modules])"
    )
    out, err = place.start("run", "hello", "--json", program=program).communicate(timeout=60)
    assert out.splitlines()[-2:] == ["0", "[]"], err
    code, events, err = place.run("hello", "--max-context", "2048", own_engine=True)
    assert code == 1 and "--max-context needs a model of its own" in events[0]["message"] and err == ""
    server = find_server(place.home)
    assert server is not None and [event["type"] for event in events[1:]] == ["error"]
    assert f"session hello is open in another process (pid {server.pid})" in events[1]["message"]
    place.script(says("From here."))  # another model
    code, events, err = place.run("hello", "--new", own_engine=True)
    assert code == 0 and err == "" and events[-1]["text"] == "From here."


def test_the_terminal_is_asked_before_an_edit_in_the_server(place: Place) -> None:
    place.script(EDIT, says("Refused."), EDIT, EDIT, says("Done.")).serve()
    screen = place.chat()
    screen.type("edit it\r")
    screen.expect("edit wants to change")
    screen.expect("1 -fox = 1")
    screen.expect("allow? [y/N]")
    screen.type("\r")
    screen.expect("Refused.")
    screen.expect(READY)
    screen.type("edit it now\r")
    screen.expect("allow? [y/N]")
    screen.type("\x03")
    screen.expect("interrupted; the session keeps what was done")
    assert place.file.read_text() == "fox = 1\n"
    screen.expect(READY)
    screen.type("do edit it\r")
    screen.expect("allow? [y/N]")
    screen.type("y\r")
    screen.expect("Done.")
    assert place.file.read_text() == "cat = 1\n"


def test_where_nobody_can_be_asked_the_policy_decides(place: Place) -> None:
    place.script(*[EDIT, says("ok")] * 3).serve()
    for policy, is_edited in (("ask", False), ("read", False), ("edit", True)):
        code, events, _ = place.run("edit it", "--approve", policy)
        assert code == (0 if is_edited else 3) and "approval_needed" not in [event["type"] for event in events]
        assert ("cat" in place.file.read_text()) is is_edited, policy


def test_a_run_waits_for_no_other_and_ctrl_c_ends_it_with_its_turn(place: Place) -> None:
    place.script([("I wait", False), HANG], says("Fresh."), says("Going on.")).serve()
    process = place.start("run", "--json", "wait")
    until(process, "text")
    code, events, err = place.run("me too")
    message = "session wait is in a turn of another client: wait for its end, or start a fresh session with --new"
    assert (code, events, err) == (1, [{"type": "error", "message": message}], "")
    code, events, _ = place.run("another", "--new")
    assert code == 0 and events[-1]["session"] == "another"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == ""
    interrupted = {"type": "notice", "message": "interrupted; the session keeps what was done"}
    assert json.loads(out.splitlines()[-1]) == interrupted
    code, events, _ = place.run("go on", "--session", "wait")
    assert code == 0 and (events[-1]["turn"], events[-1]["text"]) == (2, "Going on.")


def test_two_chats_watch_and_drive_one_session(place: Place) -> None:
    place.script(says("Hello one.\nAnd more."), says("Hello two."), [("I wait", False), HANG]).serve()
    first, second = place.chat("--session", "both"), place.chat("--session", "both")
    first.type("from the first\r")
    first.expect("And more.")
    second.expect("another client: from the first")
    second.expect("Hello one.")
    second.expect("And more.")
    second.expect("tokens in (")
    first.expect(READY)
    second.type("from the second\r")
    second.expect("Hello two.")
    first.expect("another client: from the second")
    first.expect("Hello two.")
    first.type("wait\r")
    first.expect("I wait")
    second.expect("another client: wait")
    second.type("me too\r")
    second.expect("session both is in a turn of another client")
    second.expect(READY)
    first.type("\x03")
    first.expect("interrupted; the session keeps what was done")
    second.expect("that turn was interrupted")
    first.expect(READY)
    second.type("/turns\r")
    second.expect("2  from the second")
    second.expect("3  wait")
    second.expect(READY)
    second.type("/rewind 1\r")
    second.expect("goes on after turn 1")
    second.expect(READY)
    first.expect("another client went back to the end of turn 1")
    first.expect(READY)
    first.type("/new\r")
    first.expect("a new session: 0 turns")
    first.expect(READY)
    first.type("/quit\r")
    second.type("/quit\r")
    assert first.process.wait(60) == 0 and second.process.wait(60) == 0


def test_a_question_that_is_answered_elsewhere_ends(place: Place) -> None:
    place.script(EDIT, says("Done."), says("Again.")).serve()
    asked, other = place.chat("--session", "both"), place.chat("--session", "both")
    asked.type("edit it\r")
    asked.expect("allow? [y/N]")
    other.expect("another client: edit it")
    other.expect("1 -fox = 1")
    other.expect("/yes allows it, /always from now on, /no [WHY] refuses it")
    other.type("/yes\r")
    other.expect("answered")
    asked.expect("another client allowed it")
    asked.expect("Done.")
    other.expect("Done.")
    assert place.file.read_text() == "cat = 1\n"
    asked.expect(READY)
    asked.type("go on\r")
    asked.expect("Again.")
    other.type("/no\r")
    other.expect("no turn of another client waits for an answer")


def test_a_client_that_is_killed_leaves_its_turn_to_the_server_and_to_others(place: Place) -> None:
    place.script(EDIT, [("I wait", False), HANG], says("Back.")).serve()
    screen = place.chat()
    screen.type("edit it\r")
    screen.expect("allow? [y/N]")
    screen.process.kill()
    other = place.chat()
    other.expect("/yes allows it, /always from now on, /no [WHY] refuses it")
    other.type("/yes\r")
    other.expect("edited a.py")
    assert place.file.read_text() == "cat = 1\n"
    other.type("/stop\r")
    other.expect("that turn was interrupted")
    other.type("/stop\r")
    other.expect("no turn of another client runs")
    other.type("back?\r")
    other.expect("Back.")


def test_a_chat_without_a_terminal_uses_the_server(place: Place) -> None:
    place.script(says("One."), says("Two.")).serve()
    command = place.command("chat", "--workspace", str(place.workspace))
    lines = "hello\n\n/turns\n/new\nagain\n/quit\nnever\n"
    done = subprocess.run(command, cwd=ROOT, env=place.env, input=lines, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "One.\nTwo.\n", done.stderr
    assert done.stderr.count("a new session: 0 turns") == 2
    assert "   1  hello" in done.stderr


def test_a_server_killed_in_a_turn_leaves_the_session_whole(place: Place) -> None:
    place.script(EDIT, [("I wait", False), HANG])
    server = place.serve()
    process = place.start("run", "--json", "--approve", "edit", "edit it")
    until(process, "tool_result")
    server.kill()
    until(process, "notice")
    process.kill()
    server.wait()  # its socket ends before its lock does
    assert (place.home / "server.json").exists() and find_server(place.home) is None
    place.script(says("Going on."))
    code, events, err = place.run("go on", own_engine=True)
    assert code == 0 and err == "" and events[-1]["text"] == "Going on."
    assert place.sessions() == [("edit-it", [(1, "interrupted"), (2, "done")])]


def test_a_server_that_is_started_again_is_found_again(place: Place) -> None:
    place.script(says("One."), [("I wait", False), HANG])
    server = place.serve()
    screen = place.chat()
    screen.type("first\r")
    screen.expect("One.")
    screen.expect(READY)
    screen.type("wait\r")
    screen.expect("I wait")
    server.kill()
    screen.expect("the connection to the server is lost; trying again")
    server.wait()
    script = place.model
    place.script(says("Three."))  # the same directory is the same model
    assert script is not None and place.model is not None
    (script / "script.json").write_bytes((place.model / "script.json").read_bytes())
    place.model = script
    place.serve()
    screen.expect("the server was started again in the middle of the turn")
    screen.expect(READY)
    screen.type("third\r")
    screen.expect("Three.")
    screen.expect(READY)
    screen.type("/quit\r")
    assert screen.process.wait(60) == 0


def test_a_server_that_is_gone_ends_the_turn_with_the_way_out(place: Place) -> None:
    server = place.script([("I wait", False), HANG]).serve()
    program = (
        "import sys, holdfast.agent.attach.session, holdfast.agent.cli.main\n"
        "holdfast.agent.attach.session.LOST_S = 1\n"
        "sys.exit(holdfast.agent.cli.main.main(sys.argv[1:]))"
    )
    process = place.start("run", "--json", "wait", program=program)
    until(process, "text")
    server.kill()
    error = until(process, "error")["message"]
    assert f"(pid {server.pid}) has ended: start it again, or run this again without it" in error
    assert error.endswith("the session keeps what was done") and "\n" not in error
    assert process.wait(60) == 1


def test_commands_on_a_session_that_the_server_holds_go_through_it(place: Place) -> None:
    place.script(says("One."), says("Two."), says("Three.")).serve()
    place.run("first")
    place.run("second")

    def sessions(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "holdfast.agent", "sessions", *arguments]
        return subprocess.run(command, cwd=ROOT, env=place.env, capture_output=True, text=True, timeout=60)

    rewound = sessions("rewind", "first", "--turn", "1")
    assert rewound.returncode == 0 and rewound.stdout.startswith("first goes on after turn 1 ("), rewound.stderr
    value = json.loads(sessions("rewind", "first", "--turn", "1", "--json").stdout)
    assert value.keys() == {"name", "branch", "turns", "tokens", "turn", "files", "kept", "files_changed"}
    assert value["turns"] == 1
    assert sessions("rewind", "first", "--turn", "7").returncode == 1
    code, events, _ = place.run("third")
    assert code == 0 and (events[-1]["turn"], events[-1]["text"]) == (2, "Three.")
    removed = sessions("rm", "first")
    assert removed.returncode == 0 and removed.stdout.startswith("first is deleted, "), removed.stderr
    assert sessions("list").stdout == "there is no session yet\n"


def test_a_session_in_a_server_begins_with_its_first_prompt_too(place: Place) -> None:
    place.script(says("One."), EDIT, says("Two."), says("Three.")).serve()
    for _ in range(2):
        screen = place.chat()
        screen.type("/turns\r")
        screen.expect("there is no turn yet")
        screen.type("/quit\r")
        assert screen.process.wait(60) == 0
    assert place.sessions() == []
    screen = place.chat("--approve", "edit")
    screen.type("Say one!\r")
    screen.expect("One.")
    screen.expect(READY)
    screen.type("edit it\r")
    screen.expect("Two.")
    screen.expect(READY)
    screen.type("/rewind 1\r")
    screen.expect("put back as they were then: a.py · /redo takes it back")
    assert place.file.read_text() == "fox = 1\n"
    screen.type("/branches\r")
    screen.expect("branch 1, 2 turns")
    screen.expect("* branch 2, 1 turns")
    screen.type("/branch 1\r")
    screen.expect("the session goes on at the end of branch 1")
    screen.type("/turns\r")
    screen.expect("2  edit it")
    assert place.file.read_text() != "fox = 1\n"
    screen.type("/undo\r")
    screen.expect("as before turn 2: a.py · /redo takes it back")
    assert place.file.read_text() == "fox = 1\n"
    screen.type("/redo\r")
    screen.expect("put in place again: a.py")
    screen.type("/rewind 1 --conversation\r")
    screen.expect("what it left behind changed a.py: the files stay as they are on disk")
    screen.type("/rewind 0 --files\r")
    screen.expect("put back as they were then: a.py")
    assert place.file.read_text() == "fox = 1\n"
    screen.type("/branch 9\r")
    screen.expect("no branch 9")
    screen.type("/quit\r")
    assert screen.process.wait(60) == 0
