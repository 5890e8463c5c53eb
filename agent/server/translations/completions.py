"""`/v1/completions`: text that continues a prompt, without a conversation, translated to responses.

Owns the fields of that API and its objects. Must not know how a response is made.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from aiohttp import web
from pydantic import BeforeValidator, Field

from holdfast.agent.encoding.encode import BOS
from holdfast.agent.models.opened import AnyModel
from holdfast.agent.models.remote.model import RemoteModel
from holdfast.agent.server.http import SERVICE, USER, json_response, read_json, send_frames
from holdfast.agent.server.json import ApiError, Json, bad, dumps, unsupported
from holdfast.agent.server.responses.agent_model import AGENT_MODEL
from holdfast.agent.server.responses.request import NO_PENALTIES, NO_PROBABILITIES, create_request
from holdfast.agent.server.responses.response import Response
from holdfast.agent.server.translations.chat_completions import failure_of, usage
from holdfast.agent.server.translations.chat_request import StopTexts, StreamOptions, Tokens
from holdfast.agent.server.translations.choices import MAX_CHOICES, all_over, begin, leave, merged, seeded
from holdfast.agent.server.validation import Body, Names, Short, Unsupported, checked
from holdfast.engine import TooManyTokens

UNSUPPORTED: Unsupported = {
    "suffix": (("",), "this model only goes on, leave it out"),
    "logprobs": ((), NO_PROBABILITIES),
    "best_of": ((1,), "ask for n, and choose yourself"),
    "logit_bias": (({},), "leave it out"),
    "presence_penalty": ((0,), NO_PENALTIES),
    "frequency_penalty": ((0,), NO_PENALTIES),
    "messages": ((), "send prompt, or ask chat/completions"),
    "max_completion_tokens": ((), "send max_tokens"),
    "max_output_tokens": ((), "send max_tokens"),
}
SAME = ("model", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "stream", "user")
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]


def _as_list(prompt: Any) -> Any:
    """One prompt, text or tokens, as a list of one."""
    is_one = isinstance(prompt, str) or (isinstance(prompt, list) and prompt and isinstance(prompt[0], int))
    return [prompt] if is_one else prompt


class Completion(Body):
    """A request for `n` completions of each prompt."""

    model: Short
    prompt: Annotated[list[str | Ids], BeforeValidator(_as_list)] = Field([""], min_length=1, max_length=MAX_CHOICES)
    max_tokens: Tokens = 16
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    echo: bool = False
    stop: StopTexts = Field(default_factory=list, max_length=16)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=2**31)
    min_p: float = Field(0.0, ge=0, lt=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: Short | None = None


async def create_completion(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    asked = await asyncio.to_thread(checked, Completion, await read_json(request), UNSUPPORTED)
    if asked.model == AGENT_MODEL:
        raise unsupported(f"{AGENT_MODEL} answers conversations: ask chat/completions", "model")
    if asked.n * len(asked.prompt) > MAX_CHOICES:
        raise bad(f"n: {asked.n} for each of {len(asked.prompt)} prompts are more than {MAX_CHOICES}", "n")
    service.check_model(asked.model)
    prompts = await asyncio.to_thread(_prompts, asked, service.app.engine)
    fields = {key: getattr(asked, key) for key in SAME} | {"store": False, "max_output_tokens": asked.max_tokens}
    wanted = create_request(fields)
    each = [
        (wanted.model_copy(update=seeded(asked.seed, number)), ids) for _, ids in prompts for number in range(asked.n)
    ]
    responses = await begin(service, request[USER], each, Names({"input": "prompt", "max_output_tokens": "max_tokens"}))
    echoes = [text if asked.echo else "" for text, _ in prompts for _ in range(asked.n)]
    if asked.stream:
        return await send_frames(request, _frames(responses, echoes, asked), lambda: leave(responses))
    await all_over(responses)
    for response in responses:
        if (error := failure_of(response)) is not None:
            raise error
    choices = [
        _choice(echo + _text(response), number, response)
        for number, (response, echo) in enumerate(zip(responses, echoes, strict=True))
    ]
    return json_response({**_head(responses[0]), "choices": choices, "usage": usage(responses, asked.n)})


def _prompts(asked: Completion, engine: AnyModel) -> list[tuple[str, list[int]]]:
    """Each prompt as text and tokens. A text gets the begin-of-sequence token, tokens are used as given. Raises
    ApiError."""
    if isinstance(engine, RemoteModel):
        raise bad(f"{engine.identity} takes messages: use /v1/chat/completions or /v1/responses", "model")
    found = []
    for number, prompt in enumerate(asked.prompt):
        where = f"prompt[{number}]" if len(asked.prompt) > 1 else "prompt"
        if isinstance(prompt, str):
            try:
                ids = engine.tokenizer.encode_pieces([(BOS, True), (prompt, False)], engine.max_context)
            except TooManyTokens as e:
                raise ApiError(400, f"{where}: {e}", "context_length_exceeded", where) from None
            found.append((prompt, ids))
            continue
        if not prompt or max(prompt) >= engine.model_config.vocab_size:
            most = engine.model_config.vocab_size - 1
            raise bad(f"{where} must be tokens of this model: at least one, each from 0 to {most}", where)
        found.append((engine.tokenizer.decode(prompt) if asked.echo else "", prompt))
    return found


def _head(response: Response) -> Json:
    return {
        "id": response.id.replace("resp_", "cmpl-"),
        "object": "text_completion",
        "created": int(response.created_at),
        "model": response.object["model"],
    }


def _choice(text: str, index: int, ended: Response | None = None) -> Json:
    """A choice, or a chunk of one that has not ended."""
    reason = None if ended is None else "stop" if ended.status == "completed" else "length"
    return {"text": text, "index": index, "logprobs": None, "finish_reason": reason}


def _text(response: Response) -> str:
    items = response.output
    return "".join(part["text"] for item in items if item["type"] == "message" for part in item["content"])


async def _frames(responses: list[Response], echoes: list[str], asked: Completion) -> AsyncGenerator[str, None]:
    head = _head(responses[0])
    pieces = (_pieces(response, number, echoes[number]) for number, response in enumerate(responses))
    try:
        async for choice in merged(pieces):
            yield f"data: {dumps({**head, 'choices': [choice]})}\n\n"
    except ApiError as error:
        yield f"data: {dumps({'error': error.body()})}\n\n"
        return
    if asked.stream_options.include_usage:
        yield f"data: {dumps({**head, 'choices': [], 'usage': usage(responses, asked.n)})}\n\n"
    yield "data: [DONE]\n\n"


async def _pieces(response: Response, index: int, echo: str) -> AsyncGenerator[Json, None]:
    """The chunks of one choice, its end last. Raises ApiError if it has failed."""
    if echo:
        yield _choice(echo, index)
    async for event in response.follow():
        if event["type"] == "response.output_text.delta":
            yield _choice(event["delta"], index)
    if (error := failure_of(response)) is not None:
        raise error
    yield _choice("", index, response)
