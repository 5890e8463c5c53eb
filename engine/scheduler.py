"""Which tokens of which sequences the next step computes, and who holds pages and slots.

Owns the queue, the requests that load or run, and the memory. A request is admitted when everything it may need is free
(a tail slot, pages for its prompt and all tokens it may sample), so an admitted request never waits for memory and
nothing deadlocks; the others wait in order. When memory is short the sequence that has been idle longest gives way.
Decodes go into every step; prefill fills the rest of a bounded chunk, which prompts share: a short one does not wait
for a long one.
"""

from collections import deque
from collections.abc import Callable

from holdfast.engine.batch import ROWS_AT_ONCE
from holdfast.engine.errors import ContextFull, EngineError
from holdfast.engine.sequence import Request, Sequence
from holdfast.engine.state.cache import MAX_DRAFTS, Cache
from holdfast.engine.state.content_ids import Roll
from holdfast.engine.state.page_pool import PagePool
from holdfast.engine.state.pinned_prefix import PinnedPrefix

MAX_AHEAD = 8  # tokens sampled before the consumer took them: a cancel takes them back
MovePrefix = Callable[[Sequence, list[int], int], None]
# ... with those of one more step and its guesses, which must all still be within reach of the rings
assert MAX_AHEAD + ROWS_AT_ONCE + (ROWS_AT_ONCE - 1) <= MAX_DRAFTS


class Scheduler:
    """`load(request)` brings a stored sequence in, then calls `loaded`; `ask_to_park(seq)` asks its owner to store it
    and returns whether there is one: without an owner the state is dropped, and computed again when it is used."""

    def __init__(
        self,
        cache: Cache,
        max_context: int,
        prefill_chunk: int,
        max_batch: int,
        num_drafts: int,
        load: Callable[[Request, list[int]], None],
        ask_to_park: Callable[[Sequence], bool],
        pinned_pages: int,
    ):
        self.cache, self.max_context = cache, max_context
        self.prefill_chunk, self.max_batch, self.num_drafts = prefill_chunk, max_batch, num_drafts
        self._load, self._ask_to_park = load, ask_to_park
        self.pinned_pages = pinned_pages
        self.pool = PagePool(cache.num_pages)
        self.free_slots = list(range(cache.num_slots - 1, -1, -1))
        self.waiting: deque[Request] = deque()
        self.loading: list[Request] = []
        self.running: list[Request] = []
        self.idle: dict[int, Sequence] = {}  # holding memory without a request, the one used longest ago first

    def add(self, request: Request, ids: list[int]) -> None:
        """Append ids to the request's sequence and queue it. On an error the sequence stays as it was."""
        seq = request.seq
        if seq.is_released:
            raise EngineError(f"sequence {seq.id} was released: start a new one and feed its tokens again")
        if seq.request is not None:
            if seq.request in self.running or seq.request in self.waiting:
                raise EngineError(f"sequence {seq.id} is already being extended; wait for it or cancel it")
            self.cancel(seq.request)
        if request.is_load:
            seq.request = request
            self.waiting.append(request)
            return
        length = len(seq.token_ids) + len(ids)
        room = self.max_context - (length - seq.dropped_tokens)
        if room < (1 if request.params.max_tokens else 0):
            raise ContextFull(
                f"{length} tokens do not fit the context of {self.max_context}: shorten it or raise max_context"
            )
        is_nothing = length == seq.num_tokens and (request.params.max_tokens == 0 or length == seq.least_tokens)
        if length == 0 or is_nothing:
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
        shares = self._prefill_shares()
        for request in self.running:
            if request.num_sampled:
                if request.num_sampled - request.num_taken <= MAX_AHEAD:
                    plan.append((request, request.seq.num_waiting + self._draft(request)))
            elif shares[request.seq.id]:
                plan.append((request, shares[request.seq.id]))
        return plan

    def _prefill_shares(self) -> dict[int, int]:
        """How many of its waiting tokens each prompt may feed now, by sequence.

        Half of the chunk is for the one that will be done first, so that they do not all end at the end; the others
        share what is left.
        """
        prompts = sorted(
            (request.seq for request in self.running if not request.num_sampled), key=lambda seq: seq.num_waiting
        )
        left, shares = self.prefill_chunk, {}
        for number, seq in enumerate(prompts):
            part = max(-(-left // (len(prompts) - number)), 0 if number else left // 2)
            shares[seq.id] = min(seq.num_waiting, part)
            left -= shares[seq.id]
        return shares

    def commit(self, request: Request, count: int, sampled: list[int]) -> None:
        """`count` waiting tokens of the request were computed, and `sampled` after them.

        These are the accepted drafts and one token more.
        """
        seq = request.seq
        seq.num_tokens += count - len(seq.drafts) + max(0, len(sampled) - 1)
        seq.drafts = []
        self._seal(seq)
        if not request.num_sampled:
            request.on_prefill(request.num_prompt - seq.num_waiting, request.num_prompt)
        for token in sampled:
            seq.token_ids.append(token)
            request.num_sampled += 1
            request.on_token(token)
        matcher = request.matcher
        if matcher is not None and (matcher.is_over or matcher.error is not None):
            self.finish(request, matcher.error)
            return
        stopped = bool(sampled) and sampled[-1] in request.params.stop_ids
        fed = seq.num_waiting == (1 if sampled else 0)
        if stopped or (fed and request.num_sampled >= request.max_tokens):
            self.finish(request, None)

    def loaded(self, request: Request, error: Exception | None) -> None:
        """A stored sequence is in the cache, or could not be read: then it holds nothing and is stored as before."""
        seq = request.seq
        self.loading.remove(request)
        if error is None and seq.stored is not None:
            seq.pages[: len(seq.stored.page_ids)] = map(self.pool.seal, seq.pages, seq.stored.page_ids)
            seq.stored = None
        if error is not None or seq.is_released:
            self._free(seq)
        if request.is_over:
            self._rest(seq)
        elif error is not None:
            request.on_done(error)
        else:
            self._run(request)

    def finish(self, request: Request, error: Exception | None) -> None:
        """End a request; pages past its sequence's last token are free again.

        One that loads ends when it has loaded.
        """
        if request in self.running:
            self.running.remove(request)
            self._trim(request.seq)
            self._rest(request.seq)
        elif request in self.waiting:
            self.waiting.remove(request)
            self._rest(request.seq)
        elif request not in self.loading or request.is_over:
            return
        request.is_over = True
        request.on_done(error)

    def cancel(self, request: Request) -> None:
        """End a request and take back what its consumer has not received, unless another request came after it."""
        extra = request.num_sampled - request.num_taken
        if extra > 0 and request.seq.request is request:
            del request.seq.token_ids[-extra:]
            request.num_sampled = request.num_taken
            request.matcher = None  # it has seen what is taken back, and nothing asks it again
            request.seq.num_tokens = min(request.seq.num_tokens, len(request.seq.token_ids))
        self.finish(request, None)

    def release(self, seq: Sequence) -> None:
        """Forget a sequence; its memory is free again."""
        for request in [r for r in (*self.running, *self.waiting, *self.loading) if r.seq is seq]:
            self.finish(request, EngineError(f"sequence {seq.id} was released"))
        seq.is_released, seq.stored = True, None
        if not any(r.seq is seq for r in self.loading):
            self._free(seq)

    def is_busy(self, seq: Sequence) -> bool:
        """Whether its state is changing.

        One that only waits may be stored and parked: those before it need its memory.
        """
        return any(r.seq is seq for r in (*self.running, *self.loading))

    def park(self, seq: Sequence) -> None:
        """Free the memory of a sequence that is not busy, whose state is stored, or is given up."""
        assert not self.is_busy(seq)
        self._free(seq)
        seq.is_asked_to_park = False
        if seq.stored is not None:
            seq.num_tokens = seq.least_tokens = len(seq.stored.ids)
        elif seq.chain.rolls:  # what it saw is gone: only its owner can build it again
            self.release(seq)
        else:
            seq.num_tokens = seq.least_tokens = seq.num_sealed = 0

    def roll(self, seq: Sequence, roll: Roll, move_prefix: MovePrefix) -> None:
        """See `Engine.roll`. Kept pages stay as they are; the prefix gets new pages in its new place."""
        size = self.cache.page_tokens
        prefix_pages, first = roll.head_tokens // size, (roll.first_kept - seq.dropped_tokens) // size
        is_whole = roll.first_kept % size == roll.head_tokens % size == 0
        held_prefix = seq.chain.rolls[-1].head_tokens // size if seq.chain.rolls else 0
        if not is_whole or roll.position != seq.num_tokens or prefix_pages != self.pinned_pages:
            raise EngineError(f"{roll} is not possible at token {seq.num_tokens} with {self.pinned_pages} pinned pages")
        if not held_prefix < first or not prefix_pages < first or roll.first_kept > seq.num_tokens:
            raise EngineError(
                f"{roll} drops nothing, or what it does not hold: it holds {seq.num_tokens - seq.dropped_tokens}"
            )
        self.pool.drop(reversed(seq.pages[:first]))
        moved = self.pool.take(prefix_pages)
        if seq.prefix is not None:
            move_prefix(seq, moved, roll.dropped_tokens)
        seq.pages[:first] = moved
        seq.chain.extend(seq.token_ids, seq.num_tokens)
        seq.chain.rolls.append(roll)
        seq.num_sealed = max(seq.num_sealed, roll.first_kept // size)
        seq.least_tokens = seq.num_tokens
        for number, page in enumerate(moved):
            seq.pages[number] = self.pool.seal(page, seq.chain.moved_page_id(number, roll))

    def _admit(self) -> None:
        while self.waiting and len(self.running) + len(self.loading) < self.max_batch:
            request = self.waiting[0]
            seq = request.seq
            if any(r.seq is seq for r in self.loading):
                return
            shared = self._resident(seq)
            total = len(seq.token_ids) + request.max_tokens - seq.dropped_tokens
            missing = max(0, self.cache.pages_for(total) - len(seq.pages)) - len(shared)
            if missing > self.pool.num_free or (seq.slot < 0 and not self.free_slots):
                if self._give_way(request):
                    continue
                return
            self.waiting.popleft()
            self.idle.pop(seq.id, None)
            if seq.slot < 0:
                seq.slot = self.free_slots.pop()
            if seq.stored is None:
                seq.pages += self.pool.take(max(0, missing))
                seq.prefix = seq.prefix or PinnedPrefix.empty(self.cache, self.pinned_pages * self.cache.page_tokens)
                self._run(request)
            else:
                self._start_load(request, shared, missing)

    def _run(self, request: Request) -> None:
        self.running.append(request)
        if request.is_load:
            self.finish(request, None)

    def _resident(self, seq: Sequence) -> dict[int, int]:
        """Pages of a stored sequence that are in memory: its page number -> page of the pool."""
        if seq.stored is None:
            return {}
        found = ((number, self.pool.find(page_id)) for number, page_id in enumerate(seq.stored.page_ids))
        return {number: page for number, page in found if page is not None}

    def _start_load(self, request: Request, shared: dict[int, int], missing: int) -> None:
        seq = request.seq
        assert seq.stored is not None and not seq.pages
        self.pool.hold(shared.values())
        own = iter(self.pool.take(missing))
        full = len(seq.stored.page_ids)
        seq.pages = [shared[n] if n in shared else next(own) for n in range(full)] + list(own)
        self.loading.append(request)
        # pages of the prefix are read even if they are here: what a roll needs of them is not
        self._load(request, [n for n in range(full) if n not in shared or n < self.pinned_pages])

    def _give_way(self, request: Request) -> bool:
        """Make the sequence idle longest give its memory up; False when that has to be waited for, or none is there."""
        for seq in list(self.idle.values()):
            if seq is request.seq or seq.is_asked_to_park:
                continue
            seq.is_asked_to_park = True
            if self._ask_to_park(seq):
                return False
            self.park(seq)
            return True
        return False

    def _draft(self, request: Request) -> int:
        """Guess what follows a lone decoding request; how many tokens were guessed."""
        seq = request.seq
        most = min(self.num_drafts, request.max_tokens - request.num_sampled - 1) if len(self.running) == 1 else 0
        seq.drafts = seq.lookup.propose(seq.token_ids, most) if most > 0 else []
        return len(seq.drafts)

    def _seal(self, seq: Sequence) -> None:
        """Share the pages that no cancel can reach any more."""
        size = self.cache.page_tokens
        end = (seq.num_tokens - MAX_DRAFTS) // size
        if end <= seq.num_sealed:
            return
        seq.chain.extend(seq.token_ids, end * size)
        for number in range(seq.num_sealed, end):
            at = number - seq.dropped_tokens // size
            seq.pages[at] = self.pool.seal(seq.pages[at], seq.chain.page_ids[number])
        seq.num_sealed = end

    def _rest(self, seq: Sequence) -> None:
        """The sequence has no request: it keeps its memory until others need it."""
        if seq.slot >= 0 and not seq.is_released:
            self.idle.pop(seq.id, None)
            self.idle[seq.id] = seq
            seq.is_asked_to_park = False

    def _trim(self, seq: Sequence) -> None:
        kept = self.cache.pages_for(len(seq.token_ids) - seq.dropped_tokens)
        self.pool.drop(reversed(seq.pages[kept:]))
        del seq.pages[kept:]

    def _free(self, seq: Sequence) -> None:
        self.pool.drop(reversed(seq.pages))
        seq.pages = []
        if seq.slot >= 0:
            self.free_slots.append(seq.slot)
            seq.slot = -1
        self.idle.pop(seq.id, None)
