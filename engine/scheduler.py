"""Which tokens of which sequences the next step computes, and who holds pages and slots.

Owns the queue, the running requests, and the free pages and slots. A request is admitted when everything it may need
is free (a tail slot, pages for its prompt and all tokens it may sample), so an admitted request never waits for memory
and nothing deadlocks; the others wait in order. Decodes go into every step; prefill fills the rest of a bounded chunk.
"""

from collections import deque

from engine.batch import ROWS_AT_ONCE
from engine.cache import MAX_DRAFTS, Cache
from engine.errors import ContextFull, EngineError
from engine.sequence import Request, Sequence

MAX_AHEAD = 8  # tokens sampled before the consumer took them: a cancel takes them back
# ... with those of one more step and its guesses, which must all still be within reach of the rings
assert MAX_AHEAD + ROWS_AT_ONCE + (ROWS_AT_ONCE - 1) <= MAX_DRAFTS


class Scheduler:
    def __init__(self, cache: Cache, max_context: int, prefill_chunk: int, max_batch: int, num_drafts: int):
        self.cache, self.max_context = cache, max_context
        self.prefill_chunk, self.max_batch, self.num_drafts = prefill_chunk, max_batch, num_drafts
        self.free_pages = list(range(cache.num_pages - 1, -1, -1))
        self.free_slots = list(range(cache.num_slots - 1, -1, -1))
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request, ids: list[int]) -> None:
        """Append ids to the request's sequence and queue it. On an error the sequence stays as it was."""
        seq = request.seq
        if seq.is_released:
            raise EngineError(f"sequence {seq.id} was released: start a new one and feed its tokens again")
        if seq.request is not None:
            if seq.request in self.running or seq.request in self.waiting:
                raise EngineError(f"sequence {seq.id} is already being extended; wait for it or cancel it")
            self.cancel(seq.request)
        length = len(seq.token_ids) + len(ids)
        room = self.max_context - length
        if room < (1 if request.params.max_tokens else 0):
            raise ContextFull(
                f"{length} tokens do not fit the context of {self.max_context}: shorten it or raise max_context"
            )
        if length == 0 or (length == seq.num_tokens and request.params.max_tokens == 0):
            raise EngineError(f"sequence {seq.id} has nothing to feed: give at least one token id")
        seq.token_ids += ids
        seq.num_tokens = min(seq.num_tokens, length - 1)  # the last token is fed (again): sampling needs its logits
        seq.request = request
        request.max_tokens = min(request.params.max_tokens, room)
        request.num_prompt = seq.num_waiting
        self.waiting.append(request)

    def schedule(self) -> list[tuple[Request, int]]:
        """The next step as (request, number of its waiting tokens); empty when nothing can run."""
        self._admit()
        plan: list[tuple[Request, int]] = []
        budget = self.prefill_chunk
        for request in self.running:
            waiting = request.seq.num_waiting
            if request.num_sampled:
                if request.num_sampled - request.num_taken <= MAX_AHEAD:
                    plan.append((request, waiting + self._draft(request)))
            elif budget > 0:
                plan.append((request, min(waiting, budget)))
                budget -= plan[-1][1]
        return plan

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_batch:
            request = self.waiting[0]
            seq = request.seq
            total = len(seq.token_ids) + request.max_tokens - seq.dropped_tokens
            missing = max(0, self.cache.pages_for(total) - len(seq.pages))
            if missing > len(self.free_pages) or (seq.slot < 0 and not self.free_slots):
                return
            self.waiting.popleft()
            if seq.slot < 0:
                seq.slot = self.free_slots.pop()
            seq.pages += [self.free_pages.pop() for _ in range(missing)]
            self.running.append(request)

    def _draft(self, request: Request) -> int:
        """Guess what follows a lone decoding request; how many tokens were guessed."""
        seq = request.seq
        most = min(self.num_drafts, request.max_tokens - request.num_sampled - 1) if len(self.running) == 1 else 0
        seq.drafts = seq.lookup.propose(seq.token_ids, most) if most > 0 else []
        return len(seq.drafts)

    def commit(self, request: Request, count: int, sampled: list[int]) -> None:
        """`count` waiting tokens of the request were computed, and `sampled` after them: the guesses that held, one more."""
        seq = request.seq
        seq.num_tokens += count - len(seq.drafts) + max(0, len(sampled) - 1)
        seq.drafts = []
        if not request.num_sampled:
            request.on_prefill(request.num_prompt - seq.num_waiting, request.num_prompt)
        for token in sampled:
            seq.token_ids.append(token)
            request.num_sampled += 1
            request.on_token(token)
        stopped = bool(sampled) and sampled[-1] in request.params.stop_ids
        fed = seq.num_waiting == (1 if sampled else 0)
        if stopped or (fed and request.num_sampled >= request.max_tokens):
            self.finish(request, None)

    def finish(self, request: Request, error: Exception | None) -> None:
        """End a request; pages past its sequence's last token are free again."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            return
        self._trim(request.seq)
        request.on_done(error)

    def cancel(self, request: Request) -> None:
        """End a request and take back what its consumer has not received, unless another request came after it."""
        extra = request.num_sampled - request.num_taken
        if extra > 0 and request.seq.request is request:
            del request.seq.token_ids[-extra:]
            request.num_sampled = request.num_taken
            request.seq.num_tokens = min(request.seq.num_tokens, len(request.seq.token_ids))
        self.finish(request, None)

    def release(self, seq: Sequence) -> None:
        """Forget a sequence; its memory is free again."""
        for request in [r for r in (*self.running, *self.waiting) if r.seq is seq]:
            self.finish(request, EngineError(f"sequence {seq.id} was released"))
        seq.is_released = True
        self.free_pages += reversed(seq.pages)
        seq.pages.clear()
        if seq.slot >= 0:
            self.free_slots.append(seq.slot)
            seq.slot = -1

    def _trim(self, seq: Sequence) -> None:
        kept = self.cache.pages_for(len(seq.token_ids) - seq.dropped_tokens)
        self.free_pages += reversed(seq.pages[kept:])
        del seq.pages[kept:]
