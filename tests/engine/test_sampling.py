"""Sampling against a plain statement of its definition: which tokens may be drawn, and how often."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from holdfast.engine import EngineError, SamplingParams
from holdfast.engine.sampling import sample

DRAWS = 2500
VOCAB = 40


def random_logits(seed: int) -> Tensor:
    return 2 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


def allowed(logits: Tensor, params: SamplingParams) -> dict[int, float]:
    """Probability of each token that may be drawn.

    Every filter looks at the unfiltered distribution; all must agree.
    """
    scaled = logits.numpy().astype(np.float64) / params.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = sorted(range(len(probs)), key=lambda token: -probs[token])  # stable: ties to the lower token
    kept, before = {}, 0.0
    for rank, token in enumerate(order):
        within_k = not params.top_k or rank < params.top_k
        if within_k and before < params.top_p and probs[token] >= params.min_p * probs[order[0]]:
            kept[token] = probs[token]
        before += probs[token]
    total = sum(kept.values())
    return {token: p / total for token, p in kept.items()}


def draws(logits: Tensor, params: SamplingParams, count: int = DRAWS) -> np.ndarray:
    return np.bincount([sample(logits, params, draw) for draw in range(count)], minlength=len(logits))


def test_temperature_zero_takes_the_largest_logit_whatever_else_is_set() -> None:
    logits = random_logits(1)
    params = SamplingParams(temperature=0.0, top_k=3, top_p=0.5, min_p=0.1, seed=4)
    assert all(sample(logits, params, draw) == int(logits.argmax()) for draw in range(20))


def test_greedy_takes_the_lower_of_equal_logits() -> None:
    assert sample(torch.tensor([0.0, 7.0, 7.0, 7.0]), SamplingParams(), 0) == 1


def test_the_same_seed_and_draw_give_the_same_token() -> None:
    logits = random_logits(2)
    params = SamplingParams(temperature=1.0, seed=11)
    first = [sample(logits, params, draw) for draw in range(100)]
    torch.manual_seed(0)  # the global generator has no part in it
    torch.rand(3)
    assert [sample(logits, params, draw) for draw in range(100)] == first
    assert len(set(first)) > 5


@pytest.mark.parametrize("other", [12, 0, -1, 2**62, 11 + 2**31])
def test_other_seeds_give_other_draws(other: int) -> None:
    logits = torch.zeros(1000)
    one, two = (
        [sample(logits, SamplingParams(temperature=1.0, seed=seed), draw) for draw in range(50)] for seed in (11, other)
    )
    assert sum(a == b for a, b in zip(one, two)) < 5


def test_every_draw_of_a_seed_is_another() -> None:
    logits, params = torch.zeros(100_000), SamplingParams(temperature=1.0, seed=7)
    assert len({sample(logits, params, draw) for draw in range(100)}) >= 98


def test_without_a_seed_draws_are_random() -> None:
    params = SamplingParams(temperature=1.0)
    assert len({sample(torch.zeros(1000), params, 0) for _ in range(50)}) > 25


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.4),
        SamplingParams(temperature=2.5),
        SamplingParams(temperature=1.0, top_k=1),
        SamplingParams(temperature=1.0, top_k=7),
        SamplingParams(temperature=3.0, top_k=VOCAB + 5),
        SamplingParams(temperature=1.0, top_p=0.05),
        SamplingParams(temperature=1.0, top_p=0.7),
        SamplingParams(temperature=2.0, top_p=0.9),
        SamplingParams(temperature=1.0, min_p=0.2),
        SamplingParams(temperature=2.0, min_p=0.05),
        SamplingParams(temperature=1.5, top_k=12, top_p=0.85, min_p=0.03),
        SamplingParams(temperature=1.5, top_k=4, top_p=0.99, min_p=0.01),
        SamplingParams(temperature=0.7, top_k=30, top_p=0.99, min_p=0.3),
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_the_definition_says(params: SamplingParams) -> None:
    """Chi-square with fixed seeds; the limit is exceeded by chance once in about ten million."""
    logits = random_logits(3)
    expected = allowed(logits, params)
    counts = draws(logits, dataclasses.replace(params, seed=5))
    assert set(np.flatnonzero(counts).tolist()) <= set(expected)
    # tokens too rare for a chi-square are counted together
    often = {token: p * DRAWS for token, p in expected.items() if p * DRAWS >= 5}
    observed = [int(counts[token]) for token in often] + [DRAWS - sum(int(counts[token]) for token in often)]
    wanted = [*often.values(), DRAWS - sum(often.values())]
    chi_square = sum((o - w) ** 2 / w for o, w in zip(observed, wanted) if w > 1e-6)
    freedom = len(observed) - 1
    assert chi_square <= freedom + 5.2 * (2 * freedom) ** 0.5 + 18, (chi_square, freedom)


@pytest.mark.parametrize("seed", range(6))
def test_the_kept_set_is_exact(seed: int) -> None:
    """At a high temperature all kept tokens are about as likely, so that enough draws show every one of them."""
    rng = np.random.default_rng(seed)
    logits = 60 * random_logits(seed)
    params = SamplingParams(
        temperature=100.0,
        top_k=int(rng.integers(5, 30)),
        top_p=float(rng.uniform(0.3, 0.9)),
        min_p=float(rng.uniform(0, 0.4)),
        seed=seed,
    )
    expected = allowed(logits, params)
    assert 1 < len(expected) < VOCAB
    assert set(np.flatnonzero(draws(logits, params, 2500)).tolist()) == set(expected)


def test_the_token_that_crosses_top_p_stays() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    for top_p, kept in ((0.49, {0}), (0.51, {0, 1}), (0.74, {0, 1}), (0.76, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        counts = draws(logits, SamplingParams(temperature=1.0, top_p=top_p, seed=1), 300)
        assert set(np.flatnonzero(counts).tolist()) == kept, top_p


def test_top_k_takes_the_lower_of_equal_tokens() -> None:
    counts = draws(torch.zeros(10), SamplingParams(temperature=1.0, top_k=3, seed=1), 300)
    assert set(np.flatnonzero(counts).tolist()) == {0, 1, 2}


def test_min_p_is_relative_to_the_most_likely_token() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    for min_p, kept in ((0.39, {0, 1, 2}), (0.41, {0, 1}), (0.59, {0, 1}), (0.61, {0}), (0.99, {0})):
        counts = draws(logits, SamplingParams(temperature=1.0, min_p=min_p, seed=1), 300)
        assert set(np.flatnonzero(counts).tolist()) == kept, min_p


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-300, 1e-6, 1e-3, 1e6, 1e308])
@pytest.mark.parametrize("top", [1e4, -1e3])
def test_extreme_temperatures_stay_finite(temperature: float, top: float) -> None:
    logits = torch.tensor([-1e4, 3.0, 2.0, 1e4]) - 1e4 + top
    tokens = {sample(logits, SamplingParams(temperature=temperature, seed=1), draw) for draw in range(200)}
    assert tokens == ({3} if temperature < 1 else {0, 1, 2, 3})


@pytest.mark.parametrize("temperature", [0.0, 1e-308, 1.0])
@pytest.mark.parametrize("logits", [[1.0, math.inf, -math.inf], [-math.inf, 2.0, -math.inf], [0.0, math.nan, 1.0]])
def test_a_lone_logit_above_all_others_is_taken_at_any_temperature(logits: list[float], temperature: float) -> None:
    assert sample(torch.tensor(logits), SamplingParams(temperature=temperature, seed=1), 0) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", -1.0),
        ("top_p", float("nan")),
        ("min_p", -0.01),
        ("min_p", 1.0),
        ("min_p", float("nan")),
        ("top_k", -1),
        ("max_tokens", -1),
    ],
)
def test_an_invalid_value_is_named_in_one_line(name: str, value: float) -> None:
    fields: dict = {name: value}
    with pytest.raises(EngineError) as error:
        SamplingParams(**fields)
    message = str(error.value)
    assert f"{name}={value}" in message and "must be" in message and "\n" not in message
