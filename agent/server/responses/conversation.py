"""The conversation of a request: the response that it goes on from, the messages that are new, and their tokens.

Owns the rules of `previous_response_id`, of item references, of conversations that are sent whole, and of truncation.
Must not know how a response is run or stored.
"""

import asyncio
import hashlib
import re
from array import array
from dataclasses import dataclass, field

from holdfast.agent.app import App
from holdfast.agent.server.access import User
from holdfast.agent.server.conversations.kept import KeptConversations
from holdfast.agent.server.json import ApiError, Json, bad
from holdfast.agent.server.responses.cache import ResponseCache
from holdfast.agent.server.responses.items import (
    Message,
    Opening,
    encode,
    fingerprints,
    messages_of,
    normal_items,
    opening_of,
)
from holdfast.agent.server.responses.request import Create
from holdfast.agent.server.responses.response import Response
from holdfast.agent.server.responses.truncation import LEFT_SHARE, shortened
from holdfast.agent.server.validation import Names
from holdfast.engine import TooManyTokens

ITEM_ID = re.compile(r"(?:rs|msg|fc|in|mcp)_([0-9a-f]{32})_?[0-9a-f]{1,5}")


@dataclass
class Base:
    """The response that a request goes on from, and the messages that are new."""

    opening: Opening
    system: list[str]
    messages: list[Message]
    digest: bytes  # of everything, the new messages included
    before: Response | None = None
    given: list[Json] = field(default_factory=list)  # the items of the request's input
    ids: list[int] = field(default_factory=list)  # the tokens of what is new
    num_ahead: int = 0  # how many of them can be read ahead

    @property
    def num_tokens(self) -> int:
        """The tokens of the whole conversation."""
        return len(self.ids) + (len(self.before.ids) if self.before else 0)


def going_on(request: Create, prompt: list[int], limit: int) -> Base:
    """For a prompt of tokens instead of a conversation. Raises ApiError if it is too long."""
    refuse_too_long(len(prompt), limit)
    digest = hashlib.blake2b(array("i", prompt).tobytes(), digest_size=16, person=b"prompt").digest()
    return Base(opening_of(request, []), [], [], digest, ids=prompt[:])


def refuse_too_long(num_tokens: int, limit: int) -> None:
    """Raises ApiError if no room is left for an answer."""
    if num_tokens >= limit:
        text = f"This model's maximum context length is {limit} tokens, and the input has {num_tokens}."
        raise ApiError(400, text, "context_length_exceeded", "input")


@dataclass(frozen=True)
class Conversations:
    """`local` below are responses that only the connection of the request can go on from."""

    app: App
    cache: ResponseCache
    kept: KeptConversations

    async def start(self, user: User, request: Create, id: str, local: dict[str, Response]) -> Base:
        """Find the response that the new response `id` goes on from, and encode what is new. With `truncation: auto` a
        conversation that is too long is shortened. Raises ApiError."""
        wanted = await self._resolved(user, request.input, local)
        given = await asyncio.to_thread(normal_items, wanted, f"in_{id[5:]}_")
        history = await self.kept.history(user.name, request.conversation_id)
        said = [*history, *given]
        try:
            base = await self._base(user, request, said, local)
            if base.before and base.before.agent_turn is not None:
                text = f"the previous response is {base.before.object['model']}'s: go on with that model"
                raise bad(text, "previous_response_id")
            if not base.messages and request.generate:
                raise bad("input is empty: there is nothing to answer", "input", "missing_required_parameter")
            base = await self._fitting(user, request, said, local, base)
        except ApiError as e:
            names = [*(["conversation"] * len(history)), *(f"input[{number}]" for number in range(len(given)))]
            raise Names({}, names).said(e) from None
        base.given = given
        return base

    async def count(self, user: User, request: Create) -> int:
        """The tokens that the model would read. Raises ApiError."""
        given = await self._resolved(user, request.input, {})
        history = await self.kept.history(user.name, request.conversation_id)
        base = await self._base(user, request, [*history, *normal_items(given, "in_")], {})
        try:
            base.ids, _ = await self._encoded(base)
        except TooManyTokens as e:
            raise ApiError(400, str(e), "context_length_exceeded", "input") from None
        return base.num_tokens

    async def _resolved(self, user: User, given: str | list[Json], local: dict[str, Response]) -> str | list[Json]:
        """The input with item references replaced by their items; an item's id says which response has it."""
        if isinstance(given, str):
            return given
        found: list[Json] = []
        for number, item in enumerate(given):
            if item.get("type") != "item_reference":
                found.append(item)
                continue
            wanted = item.get("id")
            of = ITEM_ID.fullmatch(wanted) if isinstance(wanted, str) else None
            response = await self.cache.get(user, f"resp_{of[1]}", local) if of else None
            known = [*response.input, *response.output] if response else []
            same = [other for other in known if other["id"] == wanted]
            if not same:
                raise bad(f"Item with id '{str(wanted)[:100]}' not found.", f"input[{number}].id", "item_not_found")
            found += same[:1]
        return found

    async def _base(self, user: User, request: Create, given: list[Json], local: dict[str, Response]) -> Base:
        """As `start`, without tokens. If the opening changes, the conversation is encoded again from all its items."""
        before = await self.cache.previous(user, request.previous_response_id, local)
        if before is None:
            return await self._by_content(user, request, given)
        is_first = not before.ids and not before.pending
        said = await asyncio.to_thread(messages_of, given, before.calls, is_first=is_first)
        opening = opening_of(request, [*before.system, *said.system])
        if opening.digest() != before.opening:
            return await self._by_content(user, request, [*await self._items_up_to(user, before, local), *given])
        digests = await asyncio.to_thread(fingerprints, before.digest, said.messages)
        digest = digests[-1] if digests else before.digest
        return Base(opening, [*before.system, *said.system], [*before.pending, *said.messages], digest, before)

    async def _fitting(
        self, user: User, request: Create, given: list[Json], local: dict[str, Response], base: Base
    ) -> Base:
        """Encode what is new; with `truncation: auto` drop the oldest items until an answer has room too."""
        limit = self.app.engine.max_context
        wanted = request.max_output_tokens or self.app.settings.max_output_tokens
        most = limit - 1 - min(wanted, limit // 4)
        left: list[Json] | None = None
        total = await self._measure(base)
        while request.truncation == "auto" and total > most:
            if left is None:
                previous = await self.cache.previous(user, request.previous_response_id, local)
                left = [*(await self._items_up_to(user, previous, local) if previous else []), *given]
            fewer = await asyncio.to_thread(shortened, left, LEFT_SHARE * most / total)
            if fewer is None:
                break
            left = fewer
            base = await self._by_content(user, request, left)
            total = await self._measure(base)
        refuse_too_long(total, limit)
        return base

    async def _measure(self, base: Base) -> int:
        """Encode what is new; gives the number of tokens of the whole conversation, an estimate where it is far too
        long to be encoded."""
        try:
            base.ids, base.num_ahead = await self._encoded(base)
        except TooManyTokens as e:
            return e.num_tokens + base.num_tokens
        return base.num_tokens

    async def _encoded(self, base: Base) -> tuple[list[int], int]:
        """The tokens of the new messages, and how many of them can be read ahead. Raises TooManyTokens for a text
        that is longer than the context."""
        before, engine = base.before, self.app.engine
        ids, order = (before.ids, before.calls) if before else ((), {})
        if not base.messages and ids:
            return [], 0
        return await asyncio.to_thread(
            encode,
            engine.tokenizer,
            self.app.texts,
            base.opening,
            base.messages,
            before=ids,
            call_order=order,
            most=engine.max_context,
        )

    async def _by_content(self, user: User, request: Create, given: list[Json]) -> Base:
        """Match a whole conversation against earlier responses by digest, and go on from the longest match."""
        said = await asyncio.to_thread(messages_of, given)
        opening = opening_of(request, said.system)
        start, session = opening.digest(), await self.cache.session(user.name)
        digests = await asyncio.to_thread(fingerprints, start, said.messages)
        base = Base(opening, said.system, said.messages, digests[-1] if digests else start)
        for at in range(len(digests) - 2, -1, -1):
            if said.messages[at]["role"] != "assistant":
                continue
            before = await self.cache.find(user, session, digests[at])
            if before is not None and before.is_over and before.ids and not before.pending and before.opening == start:
                base.messages, base.before = said.messages[at + 1 :], before
                break
        return base

    async def _items_up_to(self, user: User, response: Response, local: dict[str, Response]) -> list[Json]:
        """All items of the conversation of a response, its own output last."""
        found: list[list[Json]] = []
        at: Response | None = response
        while at is not None:
            if "conversation" in at.object:
                text = (
                    "the previous response belongs to a conversation: with other instructions or tools go on from that"
                )
                raise bad(f"previous_response_id: {text}", "previous_response_id")
            found.append([*at.input, *at.output])
            at = await self.cache.previous(user, at.object["previous_response_id"], local)
        return [item for some in reversed(found) for item in some]
