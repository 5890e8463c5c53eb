"""Promises of the context window: what fills it is said, and it follows the log in the next process."""

import pytest

from holdfast.agent.events import TurnDone
from tests.agent.scripted_engine import calls, says
from tests.agent.session.world import World, engine_of, fed_text, last_error, logged, shape, turn

pytestmark = pytest.mark.anyio


async def test_a_prompt_longer_than_the_context_changes_nothing(world: World) -> None:
    async with world.session(says("Yes?"), says("Yes?"), max_context=1024) as session:
        await turn(session)
        before = session.log.ids.tolist(), logged(session), session.log.turns()
        events = await turn(session, "x1" * 3000)
        assert len(events) == 1 and "of 1024" in last_error(events) and "--new" in last_error(events)
        assert (session.log.ids.tolist(), logged(session), session.log.turns()) == before
        assert isinstance((await turn(session))[-1], TurnDone)


async def test_a_result_longer_than_the_context_is_replaced_by_its_size(world: World) -> None:
    (world.workspace / "a.py").write_text("x1 = 2\n" * 200)
    async with world.session(calls("read", path="a.py"), says("Too long."), max_context=1024) as session:
        assert isinstance((await turn(session))[-1], TurnDone)
        assert "(the call ran, but its output of " in fed_text(session)


async def test_a_context_that_fills_up_is_said(world: World) -> None:
    async with world.session(says("word " * 3000), max_context=1024) as session:
        assert "the context is full: this session holds 1024 of 1024 tokens" in last_error(await turn(session))
        assert "the prompt does not fit" in last_error(await turn(session))


async def test_results_that_fill_the_context_end_the_turn(world: World) -> None:
    async with world.session(*[calls("read", path="a.py")] * 90, max_context=1024, max_steps=99) as session:
        assert "the context is full: this session holds " in last_error(await turn(session))
        assert session.log.turns() == [(1, "failed")] and len(session.log.ids) < 1024


async def test_an_answer_cut_at_its_limit_is_said(world: World) -> None:
    async with world.session(says("word " * 300), says("ok"), max_output_tokens=20) as session:
        assert shape(await turn(session)) == ["text", "notice", "turn_done"]
        assert shape(await turn(session)) == ["text", "turn_done"]


async def test_a_log_that_cannot_be_written_ends_the_turn_and_the_sequence_follows_it(world: World) -> None:
    async with world.session(says("word " * 2000), says("Yes?"), max_context=20000, max_output_tokens=20000) as session:
        database = session.log._database
        pages = database.rows("PRAGMA page_count")[0][0]
        database.rows(f"PRAGMA max_page_count = {pages + 4}")
        assert "full" in last_error(await turn(session))
        database.rows("PRAGMA max_page_count = 1000000")
        assert isinstance((await turn(session))[-1], TurnDone)
        assert session.log.turns() == [(1, "interrupted"), (2, "done")]
        assert session.log.ids.tolist() == session.window.seq.token_ids


async def test_a_new_process_feeds_the_stored_tokens_again_and_says_so(world: World) -> None:
    async with world.session(calls("read", path="a.py"), says("It has fox.")) as session:
        await turn(session)
        held = session.log.ids.tolist()
    async with world.session(says("Still fox.")) as session:
        events = await turn(session, "and now?")
        assert engine_of(session).fed[0][: len(held)] == held
        done = events[-1]
        assert isinstance(done, TurnDone) and done.turn == 2
        assert (done.usage.prefilled_again, done.usage.why) == (len(held), "no stored state")
        assert done.usage.from_memory == done.usage.from_disk == 0


async def test_usage_adds_up_to_the_context(world: World) -> None:
    replies = [calls("read", path="a.py"), says("It has fox."), says("Yes.")]
    async with world.session(*replies) as session:
        held = 0
        for prompt in ("hello", "sure?"):
            done = (await turn(session, prompt))[-1]
            assert isinstance(done, TurnDone)
            usage = done.usage
            assert usage.from_memory == held and usage.prefilled_again == 0 and usage.why is None
            held = len(session.log.ids)
            assert usage.input_tokens + usage.output_tokens == usage.context_used == held
            assert usage.context_limit == 4096 and usage.prefill_s >= 0 and usage.decode_s >= 0
            assert done.model_dump()["usage"]["input_tokens"] == usage.input_tokens
