"""A model behind chat completions: the log's tokens are decoded to messages, and its answer is encoded to tokens.

Owns what a request says and how an answer becomes the canonical transcript: reasoning, text, calls, end. Calls are
written when they are whole. Must not know HTTP.
"""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from holdfast.agent.encoding.deltas import Delta, TextDelta, ThinkingDelta, ToolCallParsed
from holdfast.agent.encoding.encode import END_THINK, EOS, THINK, Piece, ProtocolTexts, encode_calls
from holdfast.agent.encoding.parse import StreamParser
from holdfast.agent.models.remote.calls import StreamedCalls
from holdfast.agent.models.remote.decode import Conversation, Decoder
from holdfast.agent.models.remote.endpoint import Endpoint
from holdfast.agent.models.remote.model import RemoteModel, RemoteSequence, Reported
from holdfast.agent.models.remote.wire import Json, RemoteError, Wire
from holdfast.engine import EngineConfig, SamplingParams, Tokenizer

CHARS_PER_TOKEN = 12  # no tokenizer of a language model needs as few tokens as this for a prompt with tools
LEAST_CHARS = 4096  # below that nothing is concluded


class ChatModel(RemoteModel):
    """An endpoint with `/chat/completions`. `tell` gets lines for the user."""

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: Tokenizer,
        texts: ProtocolTexts,
        config: EngineConfig,
        max_context: int,
        tell: Callable[[str], None],
    ):
        super().__init__(endpoint, tokenizer, config, max_context, Wire(endpoint, tell))
        self._decoder, self._tell = Decoder(tokenizer, texts), tell
        self._has_told_of_tools = False

    async def _answer(self, seq: RemoteSequence, params: SamplingParams) -> AsyncGenerator[list[int], None]:
        roll = seq.chain.rolls[-1] if seq.chain.rolls else None
        asked = self._decoder.conversation(seq.token_ids, roll)
        answer = Answer(thinks=seq.token_ids[-1] == self.tokenizer.token_id(THINK))
        body = self._body(asked, params)
        async with aclosing(self._wire.events("/chat/completions", body, {}, _begins)) as events:
            async for event in events:
                if pieces := answer.add(event):
                    yield self.tokenizer.encode_pieces(pieces)
        seq.reports.append(answer.reported)
        if answer.finish_reason is None:
            raise RemoteError(f"{self.identity} broke off its answer: what came is kept; ask again to go on")
        self._check_whole(body, answer)
        last = answer.end()
        if not answer.calls and _is_call(answer.text, {tool["function"]["name"] for tool in asked.tools}):
            self._tell(f"{self.identity} writes its calls as text, which are not run: use a model that supports tools")
        yield self.tokenizer.encode_pieces(last)  # with the end of the message, after which nothing here runs

    def _body(self, asked: Conversation, params: SamplingParams) -> Json:
        endpoint = self.endpoint
        body: Json = {"model": endpoint.model, "messages": self._messages(asked.messages), "stream": True}
        body["stream_options"] = {"include_usage": True}
        if asked.tools:
            body["tools"] = asked.tools
        if endpoint.output is not None:
            body["max_tokens"] = endpoint.output
        if params.temperature > 0:
            body["temperature"] = params.temperature
        if params.top_p < 1:
            body["top_p"] = params.top_p
        return body | endpoint.extra

    def _messages(self, messages: list[Json]) -> list[Json]:
        """With the reasoning under the endpoint's name for it. One that reasons wants it of all its messages."""
        reasons = any(message.get("reasoning_content") for message in messages)
        sent = []
        for message in messages:
            fields = {key: value for key, value in message.items() if key != "reasoning_content"}
            if reasons and message["role"] == "assistant":
                fields[self.endpoint.reasoning_field] = message.get("reasoning_content", "")
            sent.append(fields)
        return sent

    def _check_whole(self, body: Json, answer: "Answer") -> None:
        """Raises RemoteError for an endpoint that read less than it was sent, and says nothing of it; tools that it
        leaves out are told once."""
        read, messages = answer.reported.input, _num_chars(body["messages"])
        if read is None:
            return
        if messages >= LEAST_CHARS and read * CHARS_PER_TOKEN < messages:
            raise RemoteError(
                f"{self.identity} read {read:,} tokens of messages of {messages:,} characters: it cuts its context in"
                " silence; give it a larger one (Ollama: num_ctx)"
            )
        tools = _num_chars(body.get("tools", []))
        if tools >= LEAST_CHARS // 2 and read * CHARS_PER_TOKEN < tools and not self._has_told_of_tools:
            self._has_told_of_tools = True
            self._tell(f"{self.identity} shows its model no tools: if it calls none, use one that supports tools")


def _num_chars(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False))


class Answer:
    """One streamed message, as far as it has come."""

    def __init__(self, thinks: bool):
        self.finish_reason: str | None = None
        self.reported = Reported()
        self.text = ""
        self._thinks, self._is_thinking = thinks, thinks
        self._streamed = StreamedCalls()
        self._in_text: list[ToolCallParsed] = []
        self._parser = StreamParser(thinking=False)
        self._reasoning = StreamParser(thinking=True)

    @property
    def calls(self) -> list[Json]:
        """All that are whole or that nothing more comes to."""
        written = [{"function": {"name": call.name, "arguments": call.arguments_json}} for call in self._in_text]
        return [call.as_message() for call in self._streamed.calls if call.name] + written

    def add(self, event: Json) -> list[Piece]:
        """What an event adds to the transcript."""
        if isinstance(usage := event.get("usage"), dict):
            self.reported = _reported(usage)
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta") or choice.get("message") or {}
        if not isinstance(delta, dict):
            return []
        self._streamed.add(delta.get("tool_calls"))
        self._streamed.add_function(delta.get("function_call"))
        if choice.get("finish_reason"):
            self.finish_reason = str(choice["finish_reason"])
        return self._reason(reasoning_of(delta)) + self._say(text_of(delta.get("content")))

    def end(self) -> list[Piece]:
        """The rest, and the end where the message has come to it."""
        pieces = self._written(self._reasoning.finish().tail) if self._is_thinking else []
        pieces += self._written(self._parser.finish().tail)
        pieces += self._end_reasoning()
        if self.finish_reason in ("length", "content_filter"):
            return pieces
        if self.calls:
            pieces += encode_calls(self.calls)
        return [*pieces, (EOS, True)]

    def _reason(self, text: str) -> list[Piece]:
        """Reasoning that comes after text has no place in the transcript."""
        return self._written(self._reasoning.feed(text)) if text and self._is_thinking else []

    def _say(self, text: str) -> list[Piece]:
        return self._written(self._parser.feed(text)) if text else []

    def _written(self, deltas: "list[Delta] | tuple[Delta, ...]") -> list[Piece]:
        pieces: list[Piece] = []
        for delta in deltas:
            if isinstance(delta, ThinkingDelta):
                pieces.append((delta.text, False))
            elif isinstance(delta, TextDelta) and delta.text:
                self.text += delta.text
                pieces += [*self._end_reasoning(), (delta.text, False)]
            elif isinstance(delta, ToolCallParsed) and delta.malformed is None:
                self._in_text.append(delta)
        return pieces

    def _end_reasoning(self) -> list[Piece]:
        if not self._is_thinking:
            return []
        self._is_thinking = False
        return [(END_THINK, True)]


def reasoning_of(delta: Json) -> str:
    """Reasoning has two names."""
    return next((value for name in ("reasoning_content", "reasoning") if isinstance(value := delta.get(name), str)), "")


def text_of(content: Any) -> str:
    """Text, or the text of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


def _begins(event: Json) -> bool:
    """Whether an event has a part of the answer."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    delta = choice.get("delta") or choice.get("message") or {}
    if not isinstance(delta, dict):
        return False
    return bool(
        choice.get("finish_reason")
        or reasoning_of(delta)
        or text_of(delta.get("content"))
        or delta.get("tool_calls")
        or delta.get("function_call")
    )


def _reported(usage: Json) -> Reported:
    def number(value: Any) -> int | None:
        return value if isinstance(value, int) and value >= 0 else None

    details = usage.get("prompt_tokens_details")
    cached = number(details.get("cached_tokens")) if isinstance(details, dict) else None
    if cached is None:
        cached = number(usage.get("prompt_cache_hit_tokens"))
    return Reported(number(usage.get("prompt_tokens")), cached, number(usage.get("completion_tokens")))


def _is_call(text: str, names: set[str]) -> bool:
    """Whether a text is nothing but a call in JSON."""
    text = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if not text.startswith("{"):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("name") in names
