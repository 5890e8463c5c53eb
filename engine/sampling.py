"""From logits to the next token: greedy, or temperature with top-k, top-p and min-p, reproducible by seed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.engine.constraint import Constraint
from holdfast.engine.errors import EngineError


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 leave everything in. Without a seed, draws are random.

    `constraint`: what the sampled text may be. The request ends where nothing may follow, and otherwise by a stop id,
    which can be sampled only where the text is complete. At `max_tokens` the text is cut. With `begins` any text may
    come until one of these tokens is sampled, with which the constrained text begins. `never`: tokens that are not
    sampled where there is no constraint.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int = 1024
    stop_ids: frozenset[int] = frozenset()
    never: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    begins: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise EngineError(f"temperature={self.temperature} must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise EngineError(f"top_p={self.top_p} must be above 0 and at most 1")
        if not 0 <= self.min_p < 1:
            raise EngineError(f"min_p={self.min_p} must be at least 0 and below 1")
        if self.top_k < 0:
            raise EngineError(f"top_k={self.top_k} must be 0 (off) or more")
        if self.max_tokens < 0:
            raise EngineError(f"max_tokens={self.max_tokens} must be 0 or more")


def sample(logits: Tensor, params: SamplingParams, draw: int) -> int:
    """One token from logits [V]. `draw` numbers the draws of a request: the same seed and draw give the same token.

    Greedy too where the largest logit is not finite: there is no distribution.
    """
    best = int(logits.argmax())
    if params.temperature == 0 or not logits[best].isfinite():
        return best
    # differences first: a logit divided by a tiny temperature overflows, the largest one's difference is 0
    probs = torch.softmax((logits.double() - logits[best].double()) / params.temperature, 0)
    order = probs.argsort(descending=True, stable=True)
    ranked = probs[order]
    keep = ranked >= params.min_p * ranked[0]
    if params.top_k:
        keep[params.top_k :] = False
    if params.top_p < 1:
        keep &= ranked.cumsum(0) - ranked < params.top_p  # the token that crosses top_p stays
    ranked = ranked * keep
    generator = torch.Generator()
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed((params.seed * 0x9E3779B97F4A7C15 + draw) % 2**63)
    point = torch.rand(1, generator=generator, dtype=torch.float64) * ranked.sum()
    return int(order[torch.searchsorted(ranked.cumsum(0), point).clamp(max=len(order) - 1)])
