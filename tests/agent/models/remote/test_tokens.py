"""Promises of a session whose model takes and gives token ids, as each server does; the server is scripted."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from holdfast.agent.app import App
from holdfast.agent.config import POCKET_DIR, Settings
from holdfast.agent.events import Error, Event, ToolResultGiven, TurnDone
from holdfast.agent.models.remote.endpoint import Endpoint as Entry
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.pocket.data import assistant_text, call_text
from holdfast.agent.session.approvals import Approvals
from holdfast.agent.session.session import Session
from holdfast.engine import Tokenizer
from tests.agent.models.remote.endpoint import Answer, Endpoint

pytestmark = pytest.mark.anyio
TOKENIZER = Tokenizer.from_dir(POCKET_DIR)
CALL = TOKENIZER.encode_pieces(list(call_text("read", {"path": "a.py"})))
TEXT = TOKENIZER.encode_pieces(list(assistant_text("fox is 1.")))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def vllm(ids: list[int]) -> Answer:
    frames: list[Any] = [{"choices": [{"text": "x", "token_ids": [id_], "finish_reason": None}]} for id_ in ids]
    frames[-1]["choices"][0]["finish_reason"] = "stop"
    usage = {"prompt_tokens": 1000, "completion_tokens": len(ids), "prompt_tokens_details": {"cached_tokens": 500}}
    return Answer(frames=[*frames, {"choices": [], "usage": usage}])


def sglang(ids: list[int], is_cumulative: bool = True) -> Answer:
    frames = []
    for number, id_ in enumerate(ids, start=1):
        reason = {"type": "stop", "matched": id_} if number == len(ids) else None
        meta = {"prompt_tokens": 1000, "cached_tokens": 500, "completion_tokens": number, "finish_reason": reason}
        frames.append({"output_ids": ids[:number] if is_cumulative else [id_], "meta_info": meta})
    return Answer(frames=frames)


def llama(ids: list[int]) -> Answer:
    """It does not give the token that ends a message."""
    end = {"stop": True, "stop_type": "eos", "tokens": [], "tokens_evaluated": 1000, "tokens_predicted": len(ids)}
    return Answer(
        frames=[*({"tokens": [id_]} for id_ in ids[:-1]), end | {"timings": {"prompt_n": 500}}], is_done=False
    )


SERVERS = [
    ("vllm", vllm, "/v1/completions", "prompt"),
    ("sglang", sglang, "/v1/generate", "input_ids"),
    ("sglang", lambda ids: sglang(ids, False), "/v1/generate", "input_ids"),
    ("llama.cpp", llama, "/v1/completion", "prompt"),
]


@asynccontextmanager
async def session(tmp_path: Path, endpoint: Endpoint, api: Any) -> AsyncIterator[Session]:
    (tmp_path / "ws").mkdir(exist_ok=True)
    (tmp_path / "ws" / "a.py").write_text("fox = 1\n")
    entry = Entry(url=endpoint.url, model="big", api=api, tokenizer=POCKET_DIR)
    async with (
        App.open(Settings(tmp_path / "home", POCKET_DIR, endpoint=entry)) as app,
        aclosing(await app.session(tmp_path / "ws", Approvals(Policy("edit")), "work")) as opened,
    ):
        yield opened


async def ask(session: Session, prompt: str) -> list[Event]:
    async with aclosing(session.turn(prompt)) as events:
        return [event async for event in events]


@pytest.mark.parametrize(("api", "answer", "path", "field"), SERVERS)
async def test_our_tokens_go_in_and_its_tokens_come_out(
    tmp_path: Path, api: str, answer: Any, path: str, field: str
) -> None:
    async with Endpoint.serving(answer(CALL), answer(TEXT), answer(TEXT)) as endpoint:
        async with session(tmp_path, endpoint, api) as opened:
            first = await ask(opened, "what is fox?")
            assert isinstance(first[-1], TurnDone) and first[-1].text == "fox is 1."
            assert [event.ok for event in first if isinstance(event, ToolResultGiven)] == [True]
            ids = list(opened.log.ids)
        async with session(tmp_path, endpoint, api) as opened:  # as a new process
            second = await ask(opened, "again?")
            assert isinstance(second[-1], TurnDone) and second[-1].usage.from_memory == round(
                0.5 * second[-1].usage.input_tokens
            )
        one, two, three = (request[field] for request in endpoint.requests)
        assert two[: len(one)] == one and three[: len(two)] == two and three[: len(ids)] == ids
        assert {request["path"] for request in endpoint.requests} == {path}
        assert len({headers["X-Session-Id"] for headers in endpoint.headers}) == 1


async def test_another_vocabulary_is_told(tmp_path: Path) -> None:
    async with Endpoint.serving(vllm([60, 99_999])) as endpoint, session(tmp_path, endpoint, "vllm") as opened:
        last = (await ask(opened, "hello"))[-1]
        assert isinstance(last, Error) and "another vocabulary" in last.message


async def test_a_server_without_token_ids_is_told(tmp_path: Path) -> None:
    only_text = Answer(frames=[{"choices": [{"text": "Hello", "finish_reason": None}]}])
    async with Endpoint.serving(only_text) as endpoint, session(tmp_path, endpoint, "vllm") as opened:
        last = (await ask(opened, "hello"))[-1]
        assert isinstance(last, Error) and "return_token_ids" in last.message
