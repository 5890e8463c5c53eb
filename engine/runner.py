"""Runs one step on one device: a plan in, the sampled tokens out. Owns the model and the cache."""

from pathlib import Path

import torch
from torch import Tensor

from engine.batch import Batch, Segment
from engine.cache import Cache
from engine.config import ModelConfig
from engine.model import Model
from engine.numerics import Numerics
from engine.sampling import sample
from engine.sequence import Request


class Runner:
    def __init__(self, directory: Path, config: ModelConfig, numerics: Numerics, cache: Cache):
        self.model, self.cache = Model(directory, config, numerics), cache

    @torch.inference_mode()
    def run(self, plan: list[tuple[Request, int]]) -> list[list[int]]:
        """Compute the planned tokens; for each request what was sampled after its last waiting token.

        That is nothing (in the middle of a prompt), or one token, or with drafts those that held and the one after.
        """
        requests = {id(r.seq): r for r, _ in plan}
        batch = Batch([(r.seq, count) for r, count in plan], self.cache)
        streams = self.model.streams(batch, self.cache)
        by_request: dict[int, list[int]] = {}
        wanted = [s for s in batch.segments if _wants_token(requests[id(s.seq)], s)]
        if wanted:
            ends = [(s.start + s.count - len(s.seq.drafts) - 1, s.start + s.count) for s in wanted]
            logits = self.logits(streams, torch.cat([torch.arange(*end) for end in ends]))
            for rows, segment in zip(logits.split([end - start for start, end in ends]), wanted):
                request = requests[id(segment.seq)]
                by_request[id(request)] = _sample(rows, request)
        for segment in batch.segments:
            scores = requests[id(segment.seq)].scores
            if scores is not None:
                rows = torch.arange(segment.start, segment.start + segment.count)
                scores.append(self.logits(streams, rows))
        return [by_request.get(id(r), []) for r, _ in plan]

    def logits(self, streams: Tensor, rows: Tensor) -> Tensor:
        """Logits [len(rows), V] of some rows of the streams."""
        return self.model.head(streams[rows])


def _sample(rows: Tensor, request: Request) -> list[int]:
    """Sample after each draft as long as the one before it held; a stop token is the last."""
    sampled: list[int] = []
    for row, draft in zip(rows, [*request.seq.drafts, None]):
        sampled.append(sample(row, request.params, request.num_sampled + len(sampled)))
        if sampled[-1] != draft or sampled[-1] in request.params.stop_ids:
            break
    return sampled


def _wants_token(request: Request, segment: Segment) -> bool:
    last = segment.position + segment.count >= len(segment.seq.token_ids)
    return last and request.num_sampled < request.max_tokens
