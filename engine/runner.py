"""Runs one step on one device: a plan in, the sampled tokens out. Owns the model and the cache."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.batch import Batch, Segment
from engine.cache import Cache
from engine.config import ModelConfig
from engine.model import Model
from engine.numerics import Numerics
from engine.sampling import sample
from engine.sequence import Request
from kernels.gemm import pad_rows


class Runner:
    def __init__(self, directory: Path, config: ModelConfig, numerics: Numerics, cache: Cache):
        self.model, self.cache = Model(directory, config, numerics), cache

    @torch.inference_mode()
    def run(self, plan: list[tuple[Request, int]]) -> list[int | None]:
        """Compute the planned tokens; for each request the token sampled after its last waiting one, or None."""
        requests = {id(r.seq): r for r, _ in plan}
        batch = Batch([(r.seq, count) for r, count in plan], self.cache)
        streams = self.model.streams(batch, self.cache)
        by_request: dict[int, int] = {}
        wanted = [s for s in batch.segments if _wants_token(requests[id(s.seq)], s)]
        if wanted:
            logits = self.logits(streams, torch.tensor([s.start + s.count - 1 for s in wanted]))
            for row, segment in zip(logits, wanted):
                request = requests[id(segment.seq)]
                by_request[id(request)] = sample(row, request.params, request.num_sampled)
        for segment in batch.segments:
            scores = requests[id(segment.seq)].scores
            if scores is not None:
                rows = torch.arange(segment.start, segment.start + segment.count)
                scores.append(self.logits(streams, rows))
        return [by_request.get(id(r)) for r, _ in plan]

    def logits(self, streams: Tensor, rows: Tensor) -> Tensor:
        """Logits [len(rows), V] of some rows of the streams, computed in whole row tiles."""
        padded = F.pad(rows, (0, pad_rows(len(rows)) - len(rows)))
        return self.model.head(streams[padded])[: len(rows)]


def _wants_token(request: Request, segment: Segment) -> bool:
    last = segment.position + segment.count == len(segment.seq.token_ids)
    return last and request.num_sampled < request.max_tokens
