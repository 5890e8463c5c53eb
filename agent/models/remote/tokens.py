"""A model behind a server that takes token ids: vLLM, SGLang or llama.cpp. Our tokens go in, its tokens come out.

No template and no parser of the server touches them, so its cache of prefixes holds what the log holds. Owns how each
server is asked and what its chunks mean. Must not know HTTP, nor what the tokens mean.
"""

import hashlib
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Items
from contextlib import aclosing
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from holdfast.agent.encoding.encode import ASSISTANT
from holdfast.agent.models.remote.endpoint import Endpoint
from holdfast.agent.models.remote.model import RemoteModel, RemoteSequence, Reported
from holdfast.agent.models.remote.wire import Json, RemoteError, Wire
from holdfast.engine import EngineConfig, EngineError, SamplingParams, Tokenizer

SESSION_HEADER = "X-Session-Id"  # routers keep what has the same one on the replica that has its cache


@dataclass(frozen=True)
class Chunk:
    """What one event of an answer adds."""

    tokens: list[int]
    is_end: bool = False  # the model ended its message; else it was cut
    is_last: bool = False
    reported: Reported | None = None


class TokenModel(RemoteModel):
    """`endpoint.api` names the server. `tell` gets lines for the user."""

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: Tokenizer,
        config: EngineConfig,
        max_context: int,
        tell: Callable[[str], None],
    ):
        super().__init__(endpoint, tokenizer, config, max_context, Wire(endpoint, tell))
        servers: dict[str, type[Server]] = {"vllm": Vllm, "sglang": Sglang, "llama.cpp": LlamaCpp}
        self._server = servers[endpoint.api]()

    async def _answer(self, seq: RemoteSequence, params: SamplingParams) -> AsyncGenerator[list[int], None]:
        ids = _visible(seq)
        body = self._server.body(self.endpoint, ids, params) | self.endpoint.extra
        headers = {SESSION_HEADER: _session(self.identity, seq.token_ids, self.tokenizer.token_id(ASSISTANT))}
        reported = Reported()
        is_over = is_ended = False  # the server has said that this is all; the model came to the end of its message
        async with aclosing(self._wire.events(self._server.path, body, headers, self._server.begins)) as events:
            async for event in events:
                chunk = self._server.chunk(event)
                reported = chunk.reported or reported
                is_over, is_ended = is_over or chunk.is_last, is_ended or chunk.is_end
                tokens = list(takewhile(lambda token: token not in params.stop_ids, chunk.tokens))
                is_ended = is_ended or len(tokens) < len(chunk.tokens)
                self._check_known(tokens)
                if tokens:
                    yield tokens
        seq.reports.append(reported)
        if not is_over:
            raise RemoteError(f"{self.identity} broke off its answer: what came is kept; ask again to go on")
        if reported.input is not None and reported.input < len(ids) // 2:
            raise RemoteError(
                f"{self.identity} read {reported.input:,} of {len(ids):,} tokens: give it a larger context"
            )
        if is_ended:  # given last: after the end of a message nothing here runs
            yield [self.tokenizer.eos_id]

    def _check_known(self, tokens: list[int]) -> None:
        if wrong := [token for token in tokens if not 0 <= token < self.tokenizer.vocab_size]:
            raise EngineError(f"{self.identity} gives token {wrong[0]}: it has another vocabulary than the tokenizer")


class Vllm:
    """`/completions` with `return_token_ids`."""

    path = "/completions"

    def body(self, endpoint: Endpoint, ids: list[int], params: SamplingParams) -> Json:
        return {
            "model": endpoint.model,
            "prompt": ids,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "stop_token_ids": sorted(params.stop_ids),
            "skip_special_tokens": False,
            "add_special_tokens": False,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def begins(self, event: Json) -> bool:
        return bool(_dict(event).get("token_ids") or _dict(event).get("text"))

    def chunk(self, event: Json) -> Chunk:
        choice, usage = _dict(event), event.get("usage") or {}
        if choice.get("text") and choice.get("token_ids") is None:
            raise EngineError("the server gives no token ids: it must be a vLLM that knows return_token_ids")
        reason = choice.get("finish_reason")
        details = usage.get("prompt_tokens_details") or {}
        reported = Reported(usage.get("prompt_tokens"), details.get("cached_tokens"), usage.get("completion_tokens"))
        return Chunk(_ids(choice.get("token_ids")), reason == "stop", reason is not None, reported if usage else None)


class Sglang:
    """`/generate`, whose chunks have all tokens so far, or only the new ones."""

    path = "/generate"

    def __init__(self) -> None:
        self._num_seen = 0

    def body(self, endpoint: Endpoint, ids: list[int], params: SamplingParams) -> Json:
        self._num_seen = 0
        sampling = {
            "max_new_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "stop_token_ids": sorted(params.stop_ids),
            "skip_special_tokens": False,
            "no_stop_trim": True,
        }
        return {"input_ids": ids, "sampling_params": sampling, "stream": True}

    def begins(self, event: Json) -> bool:
        return bool(event.get("output_ids") or event.get("text"))

    def chunk(self, event: Json) -> Chunk:
        meta = event.get("meta_info") or {}
        ids, total = _ids(event.get("output_ids")), meta.get("completion_tokens")
        new = ids[self._num_seen :] if len(ids) == total else ids
        self._num_seen += len(new)
        reason = meta.get("finish_reason")
        kind = reason.get("type") if isinstance(reason, dict) else reason
        reported = Reported(meta.get("prompt_tokens"), meta.get("cached_tokens"), total)
        return Chunk(new, kind == "stop", kind is not None, reported)


class LlamaCpp:
    """`/completion` with `return_tokens`."""

    path = "/completion"

    def body(self, endpoint: Endpoint, ids: list[int], params: SamplingParams) -> Json:
        return {
            "prompt": ids,
            "n_predict": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "return_tokens": True,
            "cache_prompt": True,
            "stream": True,
        }

    def begins(self, event: Json) -> bool:
        return bool(event.get("tokens") or event.get("stop"))

    def chunk(self, event: Json) -> Chunk:
        if not event.get("stop"):
            return Chunk(_ids(event.get("tokens")))
        read, timings = event.get("tokens_evaluated"), event.get("timings") or {}
        computed = timings.get("prompt_n")
        cached = read - computed if isinstance(read, int) and isinstance(computed, int) else None
        reported = Reported(read, cached, event.get("tokens_predicted"))
        return Chunk([], event.get("stop_type") != "limit", True, reported)


Server = Vllm | Sglang | LlamaCpp


def _visible(seq: RemoteSequence) -> list[int]:
    """After a roll: the pinned tokens, and what is in the window."""
    if not seq.chain.rolls:
        return list(seq.token_ids)
    roll = seq.chain.rolls[-1]
    return seq.token_ids[: roll.head_tokens] + seq.token_ids[roll.first_kept :]


def _session(identity: str, ids: Items[int], assistant_id: int | None) -> str:
    """A name that stays as a session goes on: of its opening and its first prompt."""
    begun = takewhile(lambda id_: id_ != assistant_id, ids)
    return hashlib.blake2b(f"{identity} {list(begun)}".encode(), digest_size=16).hexdigest()


def _dict(event: Json) -> Json:
    choices = event.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _ids(value: Any) -> list[int]:
    return [int(id_) for id_ in value] if isinstance(value, list) else []
