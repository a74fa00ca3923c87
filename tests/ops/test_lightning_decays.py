"""Slow heads over many tokens: what each body's decays have become by then, against the recurrence in float64.

A decay that is rounded to float32 is off by up to 3e-8 at every token alike, which over these tokens is up to 1.2e-4 of
the state. What rounds each sum once, to either side, is off by some 1e-6.
"""

from collections.abc import Callable

import pytest
import torch
from exactness import random

from leyden.ops import (
    lightning_attention,
    lightning_attention_decode,
    lightning_attention_prefill,
    lightning_attention_step,
    native,
)
from leyden.ops.lightning_attention.reference import decay_in_parts

TOKENS = 4_000
SLOPES = torch.tensor([0.0, 2.9e-8, 8.9e-8, 1.01e-6, 4.95e-5, 0.004, 0.49, 0.51, 300.0])
"""None; one whose decay is 1 in float32, one whose decay is off by a third; the slowest that was released; faster ones
on both sides of where the parts change."""
H, K, V = len(SLOPES), 2, 16
BOUND = 1e-5

Read = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def draw(tokens: int) -> tuple[torch.Tensor, ...]:
    """q, k, v [1, T, H, *] and a state; what a state sums does not cancel."""
    q, k, v = (random(1, tokens, H, D, dtype=torch.float32, seed=D + i).abs() for i, D in enumerate((K, K, V)))
    return q, k, v, 1000 * random(1, H, K, V, dtype=torch.float32, seed=9).abs()


def exactly(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last output and the state behind it, by the closed form in float64."""
    tokens = q.shape[1]
    age = torch.arange(tokens - 1, -1, -1, dtype=torch.float64)
    left = torch.exp(-SLOPES.double() * age[:, None])
    end = torch.einsum("th,thk,thv->hkv", left, k[0].double(), v[0].double())
    end += torch.exp(-SLOPES.double() * tokens)[:, None, None] * state[0].double()
    return torch.einsum("hk,hkv->hv", q[0, -1].double(), end), end


def by_steps(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
    out = q
    for t in range(q.shape[1]):
        out, state = lightning_attention_step(q[:, t], k[:, t], v[:, t], SLOPES, state, "torch")
    return out[0], state[0]


def by_steps_of_a_pool(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    out, states = q, state.clone()
    for t in range(q.shape[1]):
        out = lightning_attention_decode(q[:, t], k[:, t], v[:, t], SLOPES, states, torch.tensor([0]), "torch")
    return out[0], states[0]


def by(backend: str) -> Read:
    def read(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out, end = lightning_attention(q, k, v, SLOPES, state, backend=backend)
        return out[0, -1], end[0]

    return read


def by_native_prefill(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    states = state.clone()
    out = lightning_attention_prefill(
        q, k, v, SLOPES, states, torch.tensor([0]), torch.tensor([0, q.shape[1]]), "native"
    )
    return out[0, -1], states[0]


READERS = {
    "steps": by_steps,
    "steps of a pool": by_steps_of_a_pool,
    "reference": by("reference"),
    "torch": by("torch"),
    "native": by_native_prefill,
}


@pytest.mark.parametrize("reader", READERS)
def test_slow_heads_forget_at_their_rate(reader: str) -> None:
    if reader == "native" and isinstance(native.load(), native.UnavailableError):
        pytest.skip("no C++ compiler here")
    inputs = draw(TOKENS)
    for name, ours, exact in zip(("output", "state"), READERS[reader](*inputs), exactly(*inputs), strict=True):
        for slope, a, e in zip(SLOPES.tolist(), ours.double(), exact, strict=True):
            error = ((a - e).norm() / e.norm()).item()
            assert error < BOUND, f"{name} of a head with slope {slope}: error {error:.2g}"


def test_steps_of_the_triton_kernel_forget_at_their_rate() -> None:
    """Few, as its interpreter is slow: rounded decays would be off by 3e-8 a step."""
    pytest.importorskip("triton")
    heads = slice(1, 3)
    q, k, v, state = draw(24)
    exact = exactly(q, k, v, state)[1][heads]
    q, k, v, state = q[:, :, heads], k[:, :, heads], v[:, :, heads], state[:, heads]
    for t in range(24):
        _, state = lightning_attention_step(q[:, t], k[:, t], v[:, t], SLOPES[heads], state, "triton")
    error = (state[0].double() - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))
    assert error.max() < 3e-7, error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_parts_are_as_exact_as_their_dtype(dtype: torch.dtype) -> None:
    slopes = torch.cat([SLOPES.double(), torch.logspace(-12, 2, 1000, dtype=torch.float64)]).to(dtype)
    whole, rest = decay_in_parts(slopes)
    assert whole.dtype == rest.dtype == dtype and set(whole.tolist()) <= {0.0, 1.0}
    wide = slopes.double()
    exact = torch.where(whole == 1, torch.expm1(-wide), torch.exp(-wide))
    torch.testing.assert_close(rest.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-44)
