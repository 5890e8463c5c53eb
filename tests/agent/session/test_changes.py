"""Promises of what is told of files: what every tool did on disk, computed by the program."""

import pytest

from holdfast.agent.session.outcome import Outcome
from holdfast.agent.terminal.render import changes_line
from tests.agent.scripted_engine import calls, says
from tests.agent.session.world import World, turn

pytestmark = pytest.mark.anyio


async def test_what_every_tool_did_on_disk_is_told_and_what_was_shown_outlives_the_process(world: World) -> None:
    replies = [
        calls("write", path="new/b.py", content="x\ny\n"),
        calls("edit", path="new/b.py", old="y", new="z"),
        calls("move", path="new/b.py", to="c.py"),
        calls("read", path="a.py"),
        calls("delete", path="zzz"),
        says("Done."),
    ]
    async with world.session(*replies, has_all_tools=True, max_context=16_000) as session:
        outcome = Outcome()
        for event in await turn(session):
            outcome.add(event)
        changes = outcome.changes()
        assert changes is not None and changes_line(changes) == "changed: new c.py +3 -1 · /undo; delete of zzz failed"
        assert (await session.rewind(0, part="conversation")).left == ("new/b.py", "c.py")
        await session.rewind(branch=1, part="conversation")
    replies = [
        calls("edit", path="a.py", from_line=2, new="    return 2"),
        calls("delete", path="a.py"),
        calls("move", path="c.py", to="d.py"),
        says("Done."),
    ]
    async with world.session(*replies, has_all_tools=True, max_context=16_000) as session:
        outcome = Outcome()
        for event in await turn(session):
            outcome.add(event)
        changes = outcome.changes()
        assert changes is not None and changes_line(changes) == "changed: deleted a.py -2, moved c.py -> d.py · /undo"
        assert sorted(path.name for path in world.workspace.iterdir()) == ["d.py", "new"]
        await session.undo()
        assert sorted(path.name for path in world.workspace.iterdir()) == ["a.py", "c.py", "new"]
        await session.undo()
        assert [path.name for path in world.workspace.iterdir()] == ["a.py"]
