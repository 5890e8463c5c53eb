"""Runs one step: a plan in, the sampled tokens out. Owns the model and the cache of rank 0.

Every change of the cache is first sent to the other ranks, which keep the same rows, and then done here.
"""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from holdfast.engine.batch import Batch, Segment
from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.checkpoint.tensors import Checkpoint
from holdfast.engine.columns import Parallel
from holdfast.engine.constraint import Matcher
from holdfast.engine.errors import RankLost
from holdfast.engine.graphs import steps_of
from holdfast.engine.model import Model
from holdfast.engine.placement import place
from holdfast.engine.ranks.group import Ranks
from holdfast.engine.sampling import sample
from holdfast.engine.sequence import Request, Sequence, Stored
from holdfast.engine.settings import EngineConfig
from holdfast.engine.snapshot import place_pages, place_tail
from holdfast.engine.state.cache import Cache, page_bytes
from holdfast.engine.state.pinned_prefix import PinnedPrefix


class Runner:
    """`others`: ranks 1 and on, which it waits for; None when the model has one rank."""

    def __init__(self, model: Model, cache: Cache, others: Ranks | None = None):
        self.model, self.cache, self.others = model, cache, others
        self._compute = steps_of(model, cache)

    @classmethod
    def open(
        cls, directory: Path, model_config: ModelConfig, config: EngineConfig, on_lost: Callable[[RankLost], None]
    ) -> "Runner":
        """Load a model, on all its ranks, and make room for its state. Raises EngineError.

        `on_lost` is called once, on another thread, when a rank has ended.
        """
        placement, size = place(config.device), config.page_tokens
        numerics, parallel = placement.numerics(config.numerics), Parallel(0, config.ranks)
        threads = config.threads or max(1, torch.get_num_threads() // config.ranks)  # ranks share the cores
        torch.set_num_threads(threads)
        checkpoint = Checkpoint.open(directory, model_config)
        others = Ranks(directory, config, numerics, threads, on_lost) if config.ranks > 1 else None
        try:
            model = Model(checkpoint, numerics, placement, parallel)
            most_tokens = config.max_context or model_config.max_position_embeddings
            most_pages = -(-most_tokens // size) * config.max_sequences
            one_page = max(page_bytes(model_config, size, placement), 1)
            num_pages = max(min(config.pool_bytes(placement) // one_page, most_pages), 1)
            cache = Cache(model_config, numerics, size, num_pages, config.max_sequences, placement)
            if others:
                others.connect(parallel, placement, num_pages)
            return cls(model, cache, others)
        except BaseException:
            if others:
                others.close()
            raise

    def close(self) -> None:
        """End the other ranks."""
        if self.others:
            self.others.close()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Call every kernel once, which compiles it or loads its machine code.

        Computes two tokens that are thrown away, at a position where layers choose among entries.
        """
        position = 4 * (self.model.config.index_topk + 1)
        pages = [0] * self.cache.pages_for(position + 2)
        filler = Sequence(-1, slot=0, token_ids=[0] * (position + 2), num_tokens=position, pages=pages)
        self._logits(Batch([(filler, 2)], self.cache, self.model.ops), np.array([1]))

    @torch.inference_mode()
    def run(self, plan: list[tuple[Request, int]]) -> list[list[int]]:
        """Compute the planned tokens; for each request what was sampled after its last waiting token.

        That is nothing (in the middle of a prompt), or one token, or with drafts the accepted ones and the token after
        them. Raises RankLost.
        """
        batch = Batch([(request.seq, count) for request, count in plan], self.cache, self.model.ops)
        wanted = [_logit_rows(request, segment) for (request, _), segment in zip(plan, batch.segments)]
        logits = self._logits(batch, np.array([row for rows in wanted for row in rows], np.int64))
        sampled: list[list[int]] = []
        for (request, _), rows in zip(plan, logits.split([len(rows) for rows in wanted])):
            if request.scores is not None:
                request.scores.append(rows.cpu())
            sampled.append(_sample(rows, request) if len(rows) and request.scores is None else [])
        return sampled

    def _logits(self, batch: Batch, rows: np.ndarray) -> Tensor:
        if self.others is None:
            return self._compute(batch, rows)
        prefixes = np.array([prefix_rows.starts for _, prefix_rows in batch.prefixes], np.int64).reshape(-1, 2)
        self.others.send("step", {}, *batch.host_rows[:-1], prefixes, rows)
        try:
            return self._compute(batch, rows)
        except RankLost as e:
            raise self.others.explain(e) from None

    @torch.inference_mode()
    def move_prefix(self, seq: Sequence, pages: list[int], first: int) -> None:
        """Write a sequence's pinned prefix into pages of the pool, its first token at position `first`."""
        assert seq.prefix is not None
        if self.others:
            self.others.send("prefix", {"slot": seq.slot, "pages": pages, "first": first})
        self.model.move_prefix(seq.prefix, pages, first, self.cache)

    @torch.inference_mode()
    def load(self, seq: Sequence, stored: Stored, missing: list[int], prefix: PinnedPrefix) -> None:
        """Read stored state into the memory that the sequence holds: its tail, these of its full pages, and `prefix`.

        Called on another thread than the rest. Raises what the readers raise, StateError and RankLost.
        """
        cache, full, position = self.cache, len(stored.page_ids), len(stored.ids)
        pages = [seq.pages[number] for number in missing]
        place_pages(cache, pages, self._told(seq, stored, missing), prefix)
        open_page = seq.pages[full] if full < len(seq.pages) else None
        tail = stored.read_tail()
        self._tell_place("tail", tail, slot=seq.slot, open_page=open_page, position=position)
        place_tail(cache, seq.slot, open_page, position, tail, prefix)
        seq.prefix = prefix

    def _told(self, seq: Sequence, stored: Stored, missing: list[int]) -> Iterator[bytes]:
        """The stored pages, each sent to the other ranks as it is read."""
        for number, data in zip(missing, stored.read_pages(missing)):
            self._tell_place("page", data, slot=seq.slot, page=seq.pages[number], number=number)
            yield data

    def _tell_place(self, kind: str, data: bytes, **place: int | None) -> None:
        if self.others:
            self.others.send(kind, place, np.frombuffer(data, np.uint8))


def _logit_rows(request: Request, segment: Segment) -> range:
    """Rows of the step whose logits are needed: all to score, the last and those of the drafts to sample."""
    start, end = segment.start, segment.start + segment.count
    if request.scores is not None:
        return range(start, end)
    is_last = segment.position + segment.count >= len(segment.seq.token_ids)
    wants_token = is_last and request.num_sampled < request.max_tokens
    return range(end - len(segment.seq.drafts) - 1, end) if wants_token else range(0)


def _sample(rows: Tensor, request: Request) -> list[int]:
    """Sample after each draft as long as the draft before it was accepted; ends after a stop token."""
    matcher = request.matcher
    if matcher is not None and not matcher.is_free:
        return _sample_allowed(rows, request, matcher)
    if request.params.never:
        rows = rows.index_fill(-1, _ids(request.params.never, rows.shape[-1], rows.device), -math.inf)
    greedy = rows.argmax(-1).tolist() if request.params.temperature == 0 else None
    sampled: list[int] = []
    for at, draft in enumerate([*request.seq.drafts, None]):
        draw = request.num_sampled + len(sampled)
        sampled.append(sample(rows[at].cpu(), request.params, draw) if greedy is None else greedy[at])
        if matcher is not None:
            matcher.accept(sampled[-1])
            if not matcher.is_free:
                break
        if sampled[-1] != draft or sampled[-1] in request.params.stop_ids:
            break
    return sampled


@functools.lru_cache(maxsize=8)
def _ids(tokens: frozenset[int], vocab_size: int, device: torch.device) -> Tensor:
    return torch.tensor(sorted(token for token in tokens if token < vocab_size), device=device)


def _sample_allowed(rows: Tensor, request: Request, matcher: Matcher) -> list[int]:
    """The same among the tokens that the constraint allows; none where it ends without one, or fails.

    The matcher goes on over sampled tokens alone, so it never has to take a draft back.
    """
    sampled: list[int] = []
    for at, draft in enumerate([*request.seq.drafts, None]):
        allowed = matcher.allowed()  # ascending: of equal logits the lower token is taken here too
        if not len(allowed):
            break
        logits = rows[at][allowed.to(rows.device)].cpu()
        sampled.append(int(allowed[sample(logits, request.params, request.num_sampled + len(sampled))]))
        matcher.accept(sampled[-1])
        if sampled[-1] != draft or matcher.is_over or matcher.error is not None:
            break
    return sampled
