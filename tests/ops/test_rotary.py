"""Rotary embedding against multiplication by ``scale exp(i angle)`` in complex128."""

import math

import pytest
import torch
from exactness import DTYPES, assert_within_noise, examples, random, with_gradients
from hypothesis import given
from hypothesis import strategies as st

from leyden.ops import apply_rotary, rotary_angles, rotary_frequencies


def turned(x: torch.Tensor, positions: torch.Tensor, rotary_dim: int, theta: float) -> torch.Tensor:
    """Pairs (i, i + R/2) as complex numbers, times exp(i position theta^(-2i/R)), in float64."""
    half = rotary_dim // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:rotary_dim].double())
    rates = torch.tensor([theta ** (-2 * i / rotary_dim) for i in range(half)], dtype=torch.float64)
    angles = positions.double()[:, None] * rates
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)[:, None, :]
    return torch.cat([pairs.real, pairs.imag, x[..., rotary_dim:].double()], dim=-1)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    num_tokens=st.integers(0, 20),
    rotary_dim=st.sampled_from([0, 2, 6, 12]),
    theta=st.sampled_from([1e4, 1e7]),
    start=st.sampled_from([0, 5, 1_000_000, 4_000_000]),
    scale=st.sampled_from([1.0, 1.1386294361119891]),
)
@examples(30)
def test_pairs_turn_as_complex_numbers(
    dtype: torch.dtype, num_tokens: int, rotary_dim: int, theta: float, start: int, scale: float
) -> None:
    positions = torch.arange(start, start + num_tokens)
    x = random(2, num_tokens, 3, 12, dtype=dtype)
    cos, sin = rotary_angles(positions, rotary_frequencies(rotary_dim, theta))
    assert cos.dtype == sin.dtype == torch.float32
    out, gradient = with_gradients(lambda x: [apply_rotary(x, cos, sin, scale=scale)], [x])
    exact, exact_gradient = with_gradients(lambda x: [scale * turned(x, positions, rotary_dim, theta)], [x.double()])
    assert out.dtype == dtype
    if scale == 1:
        assert torch.equal(out[..., rotary_dim:], x[..., rotary_dim:])
    # What float32 cosines and sines of the exact angles allow; the gradient of the other dims passes unchanged.
    for actual, expected in ((out, exact), (gradient, exact_gradient)):
        plain = expected.to(torch.promote_types(torch.float32, dtype) if dtype != torch.float64 else torch.float32)
        unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        torch.testing.assert_close(actual.double(), expected, rtol=unit, atol=4 * unit)
        if dtype in (torch.bfloat16, torch.float16):
            assert_within_noise(actual, plain.to(dtype), expected)


def test_a_pair_at_a_quarter_turn() -> None:
    x = torch.tensor([1.0, 5.0, 0.0, 7.0]).view(1, 1, 1, 4)  # the pairs are (1, 0) and (5, 7)
    cos, sin = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    expected = torch.tensor([0.0, 5.0, 1.0, 7.0]).view(1, 1, 1, 4)
    torch.testing.assert_close(apply_rotary(x, cos, sin), expected)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = random(1, 1, 1, 8, seed=1), random(1, 1, 1, 8, seed=2)
    scores = []
    for shift in (0, 3, 900_000):
        angles = [rotary_angles(torch.tensor([position + shift]), rotary_frequencies(8, 1e4)) for position in (7, 2)]
        turned_q, turned_k = (apply_rotary(x, *angle) for x, angle in zip((q, k), angles, strict=True))
        scores.append((turned_q * turned_k).sum().item())
    assert scores[1] == pytest.approx(scores[0], rel=1e-5, abs=1e-6)
    assert scores[2] == pytest.approx(scores[0], rel=1e-5, abs=1e-6)


def test_angles_hold_at_millions_of_tokens() -> None:
    position = 3_999_999
    cos, sin = rotary_angles(torch.tensor([position]), rotary_frequencies(2, 1e7))
    assert cos.item() == pytest.approx(math.cos(position), abs=1e-7)
    assert sin.item() == pytest.approx(math.sin(position), abs=1e-7)
