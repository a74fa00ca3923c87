"""Sampling: what is kept, how often it is drawn, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.serve import Sampling
from leyden.serve.sampling import Sampler, distribution

# Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625, in shuffled places.
PROBABILITIES = torch.tensor([0.125, 0.5, 0.0625, 0.25, 0.0625])


def drawn_from(sampling: Sampling) -> set[int]:
    probabilities, tokens = distribution(PROBABILITIES.log(), sampling)
    return set(range(probabilities.shape[0]) if tokens is None else tokens.tolist())


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.51}, {1, 3}),
        ({"top_p": 0.8}, {1, 3, 0}),
        ({"top_p": 1e-9}, {1}),
        ({"min_p": 0.25}, {1, 3, 0}),
        ({"min_p": 1.0}, {1}),
        # After top_k=2 the probabilities are 2/3 and 1/3, so top_p=0.6 needs the first alone.
        ({"top_k": 2, "top_p": 0.6}, {1}),
        ({"top_k": 3, "min_p": 0.4}, {1, 3}),
        # At temperature 1/2 the probabilities are squared: 16/23, 4/23, ... of 64/92.
        ({"temperature": 0.5, "top_p": 0.7}, {1}),
        ({"temperature": 0.5, "top_p": 0.75}, {1, 3}),
    ],
)
def test_filters_keep_the_most_probable(filters: dict[str, float], kept: set[int]) -> None:
    assert drawn_from(Sampling.parse(filters, "test")) == kept


@pytest.mark.parametrize("top_k", [None, 3])
def test_tokens_are_drawn_as_often_as_they_are_probable(top_k: int | None) -> None:
    """Pearson's statistic stays under the 99.9 % point of chi-square (18.5 at 4 degrees of freedom, 13.8 at 2)."""
    sampler = Sampler(Sampling(seed=0, top_k=top_k))
    num_draws = 8000
    counts = torch.zeros(5)
    for _ in range(num_draws):
        counts[sampler(PROBABILITIES.log())] += 1
    expected = PROBABILITIES.clone()
    if top_k is not None:
        expected[[2, 4]] = 0
    expected *= num_draws / expected.sum()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < (18.5 if top_k is None else 13.8)


def test_temperature_zero_takes_the_largest() -> None:
    assert Sampler(Sampling(temperature=0))(PROBABILITIES) == 1


def test_no_seed_differs_from_run_to_run() -> None:
    flat = torch.zeros(4096)
    draws = [[Sampler(Sampling())(flat) for _ in range(4)] for _ in range(4)]
    assert len({tuple(draw) for draw in draws}) > 1


@given(st.integers(0, 2**32), st.floats(0.05, 4), st.integers(1, 9), st.floats(0.01, 1), st.floats(0, 1))
def test_a_draw_is_always_among_the_kept(seed: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.randn(9, generator=torch.Generator().manual_seed(seed))
    sampling = Sampling(seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    _, tokens = distribution(logits, sampling)
    assert tokens is not None
    assert Sampler(sampling)(logits) in tokens.tolist()
    assert int(logits.argmax()) in tokens.tolist()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -1.0),
        ("stop", ("",)),
        ("seed", "x"),
        ("top_q", 1),
    ],
)
def test_a_bad_value_names_its_field(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"sampling: .*'{field}'"):
        Sampling(**{field: value})  # pyright: ignore[reportArgumentType]
