"""Runs one step on one device: a plan in, the sampled tokens out. Owns the model and the cache."""

import torch
from torch import Tensor

from engine.batch import Batch, Segment
from engine.cache import Cache
from engine.graphs import Graphs
from engine.model import Model
from engine.sampling import sample
from engine.sequence import Request


class Runner:
    def __init__(self, model: Model, cache: Cache, graphs: Graphs | None = None):
        self.model, self.cache, self.graphs = model, cache, graphs

    @torch.inference_mode()
    def run(self, plan: list[tuple[Request, int]]) -> list[list[int]]:
        """Compute the planned tokens; for each request what was sampled after its last waiting token.

        That is nothing (in the middle of a prompt), or one token, or with drafts those that held and the one after.
        """
        batch = Batch([(r.seq, count) for r, count in plan], self.cache, self.model.ops)
        needed = [_needed(request, segment) for (request, _), segment in zip(plan, batch.segments)]
        logits = self._logits(batch, needed)
        results: list[list[int]] = []
        for (request, _), segment, rows in zip(plan, batch.segments, logits):
            if request.scores is not None:
                request.scores.append(rows.cpu())
            is_wanted = _wants_token(request, segment)
            results.append(_sample(rows[-1 - len(segment.seq.drafts) :], request) if is_wanted else [])
        return results

    def _logits(self, batch: Batch, needed: list[range]) -> tuple[Tensor, ...]:
        """Compute a step; the logits [len(rows), V] of each range of rows."""
        rows = torch.cat([torch.arange(r.start, r.stop) for r in needed])
        if self.graphs is not None and self.graphs.can_run(batch):
            logits = self.graphs.run(batch)[rows.to(self.cache.device)]
        else:
            streams = self.model.streams(batch, self.cache)
            logits = self.model.head(streams[rows.to(self.cache.device)]) if len(rows) else torch.empty(0, 0)
        return logits.split([len(r) for r in needed])


def _needed(request: Request, segment: Segment) -> range:
    """The rows of a step whose logits somebody asks for."""
    end = segment.start + segment.count
    if request.scores is not None:
        return range(segment.start, end)
    return range(end - 1 - len(segment.seq.drafts) if _wants_token(request, segment) else end, end)


def _sample(rows: Tensor, request: Request) -> list[int]:
    """Sample after each draft as long as the one before it held; a stop token is the last."""
    greedy = rows.argmax(-1).tolist() if request.params.temperature == 0 else None
    sampled: list[int] = []
    for at, draft in enumerate([*request.seq.drafts, None]):
        draw = request.num_sampled + len(sampled)
        sampled.append(sample(rows[at].cpu(), request.params, draw) if greedy is None else greedy[at])
        if sampled[-1] != draft or sampled[-1] in request.params.stop_ids:
            break
    return sampled


def _wants_token(request: Request, segment: Segment) -> bool:
    last = segment.position + segment.count >= len(segment.seq.token_ids)
    return last and request.num_sampled < request.max_tokens
