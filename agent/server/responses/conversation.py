"""Where the conversation of a request stands: what it goes on from, what is new in it, and the tokens of that.

Owns the rules of `previous_response_id`, of references, of conversations that come whole, and of truncation. Must not know
how a response is run or kept.
"""

import asyncio
import hashlib
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.agent.app import App
from holdfast.agent.server.access import User
from holdfast.agent.server.json import ApiError, Json, bad
from holdfast.agent.server.responses.cache import ResponseCache
from holdfast.agent.server.responses.items import Message, Opening, encode, fingerprints, opening_of, talk_of
from holdfast.agent.server.responses.request import Create
from holdfast.agent.server.responses.response import Response
from holdfast.agent.server.responses.truncation import LEFT_SHARE, shortened
from holdfast.engine import TooManyTokens

ITEM_ID = re.compile(r"(?:rs|msg|fc|in|mcp)_([0-9a-f]{32})_?[0-9a-f]{1,5}")


@dataclass
class Base:
    """What a request goes on from, and what is new in it."""

    opening: Opening
    system: list[str]
    messages: list[Message]
    digest: bytes  # of everything, the new messages included
    before: Response | None = None


def going_on(request: Create, prompt: Sequence[int]) -> Base:
    """From tokens that are no conversation."""
    digest = hashlib.blake2b(array("i", prompt).tobytes(), digest_size=16, person=b"prompt").digest()
    return Base(opening_of(request, []), [], [], digest)


@dataclass(frozen=True)
class Conversations:
    """`local` below are responses that only the connection of the request can go on from."""

    app: App
    cache: ResponseCache

    async def resolved(self, user: User, given: str | list[Json], local: dict[str, Response]) -> str | list[Json]:
        """The input with the items that it only refers to; their ids say which response they are of."""
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
            known = [*response.input, *response.object["output"]] if response else []
            same = [other for other in known if other["id"] == wanted]
            if not same:
                raise bad(f"Item with id '{str(wanted)[:100]}' not found.", f"input[{number}].id", "item_not_found")
            found += same[:1]
        return found

    async def base(self, user: User, request: Create, given: list[Json], local: dict[str, Response]) -> Base:
        """Where the conversation of a request stands. With another opening it is read again from its items."""
        before = await self.cache.previous(user, request.previous_response_id, local)
        if before is None:
            return await self._by_content(user, request, given)
        is_first = not before.ids and not before.pending
        said = await asyncio.to_thread(talk_of, given, before.calls, is_first)
        opening = opening_of(request, [*before.system, *said.system])
        if opening.digest() != before.opening:
            return await self._by_content(user, request, [*await self._items_up_to(user, before, local), *given])
        digests = await asyncio.to_thread(fingerprints, before.digest, said.messages)
        digest = digests[-1] if digests else before.digest
        return Base(opening, [*before.system, *said.system], [*before.pending, *said.messages], digest, before)

    async def fitting(
        self, user: User, request: Create, given: list[Json], local: dict[str, Response], base: Base
    ) -> tuple[Base, list[int], int]:
        """Where the conversation stands and the tokens of what is new; shortened when that is asked for, so that an
        answer has room too."""
        limit = self.app.engine.max_context
        wanted = request.max_output_tokens or self.app.settings.max_output_tokens
        most = limit - 1 - min(wanted, limit // 4)
        left: list[Json] | None = None
        ids, ahead, total = await self._measured(base)
        while request.truncation == "auto" and total > most:
            if left is None:
                previous = await self.cache.previous(user, request.previous_response_id, local)
                left = [*(await self._items_up_to(user, previous, local) if previous else []), *given]
            fewer = await asyncio.to_thread(shortened, left, LEFT_SHARE * most / total)
            if fewer is None:
                break
            left = fewer
            base = await self._by_content(user, request, left)
            ids, ahead, total = await self._measured(base)
        if total >= limit:
            text = f"This model's maximum context length is {limit} tokens, and the input has {total}."
            raise ApiError(400, text, "context_length_exceeded", "input")
        return base, ids, ahead

    async def _measured(self, base: Base) -> tuple[list[int], int, int]:
        """As `encoded`, and the tokens of all; where they are far too many, about how many, and no others."""
        try:
            ids, ahead = await self.encoded(base)
        except TooManyTokens as e:
            return [], 0, e.num_tokens + len(base.before.ids if base.before else ())
        return ids, ahead, len(ids) + len(base.before.ids if base.before else ())

    async def encoded(self, base: Base) -> tuple[list[int], int]:
        """The tokens of what is new, and how many of them can be read ahead. Raises TooManyTokens for those of a text
        that no context holds."""
        before, engine = base.before, self.app.engine
        ids, order = (before.ids, before.calls) if before else ((), {})
        if not base.messages and ids:
            return [], 0
        return await asyncio.to_thread(
            encode, engine.tokenizer, self.app.texts, base.opening, ids, order, base.messages, engine.max_context
        )

    async def _by_content(self, user: User, request: Create, given: list[Json]) -> Base:
        """A conversation that comes whole: it goes on from the response that has said its beginning, if there is one."""
        said = await asyncio.to_thread(talk_of, given)
        opening = opening_of(request, said.system)
        start, session = opening.digest(), await self.cache.session(user.name)
        digests = await asyncio.to_thread(fingerprints, start, said.messages)
        base = Base(opening, said.system, said.messages, digests[-1] if digests else start)
        for at in range(len(digests) - 2, -1, -1):
            if said.messages[at]["role"] != "assistant":
                continue
            before = await self.cache.with_content(user, session, digests[at])
            if before is not None and before.is_over and before.ids and not before.pending and before.opening == start:
                base.messages, base.before = said.messages[at + 1 :], before
                break
        return base

    async def _items_up_to(self, user: User, response: Response, local: dict[str, Response]) -> list[Json]:
        """Every item of a conversation, the response's own output last."""
        found: list[list[Json]] = []
        at: Response | None = response
        while at is not None:
            if "conversation" in at.object:
                text = (
                    "the previous response belongs to a conversation: with other instructions or tools go on from that"
                )
                raise bad(f"previous_response_id: {text}", "previous_response_id")
            found.append([*at.input, *at.object["output"]])
            at = await self.cache.previous(user, at.object["previous_response_id"], local)
        return [item for some in reversed(found) for item in some]
