"""A NaN or an infinity stays where it is: in its document, or in its token among experts; in every body."""

import functools
import math

import pytest
import torch
from exactness import random

from leyden.ops import lightning_attention, lightning_slopes, native, ranged_attention, swiglu_experts
from leyden.ops.ranged_attention import ranged_attention_backward

BOUNDS, SICK = [0, 5, 70, 73, 140], slice(70, 73)  # one shares its chunk with its neighbours on both sides
SHORT, SICK_SHORT = [0, 3, 10, 13, 20], slice(10, 13)  # for the interpreter
HAS_NATIVE = not isinstance(native.load(), native.UnavailableError)
NATIVE = pytest.param("native", marks=pytest.mark.skipif(not HAS_NATIVE, reason="no native library"))
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's
VALUES = pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)


def assert_alike_outside(found: torch.Tensor, sound: torch.Tensor, sick: slice) -> None:
    """Along the last dim but two, which is that of tokens or documents."""
    found, sound = found.clone(), sound.clone()
    assert not torch.equal(found, sound), "what was poisoned did not change at all"
    found[sick], sound[sick] = 0, 0
    torch.testing.assert_close(found, sound, rtol=1e-4, atol=1e-5)


def lightning(inputs: dict[str, torch.Tensor], bounds: list[int], backend: str) -> list[torch.Tensor]:
    """Outputs, then final states, then gradients; tokens or documents first."""
    q, k, v = (inputs[name].clone().requires_grad_() for name in "qkv")
    out, states = lightning_attention(q, k, v, lightning_slopes(2, 0, 4), None, torch.tensor(bounds), backend)
    grads = torch.autograd.grad(out, (q, k, v), inputs["out"])
    return [out.detach()[0], states.detach(), *(grad[0] for grad in grads)]


def draw(*size: int) -> dict[str, torch.Tensor]:
    return {name: random(*size, dtype=torch.float32, seed=ord(name[0])) for name in ("q", "k", "v", "out")}


@functools.cache
def sound_lightning(backend: str, bounds: tuple[int, ...]) -> list[torch.Tensor]:
    """What becomes of inputs in which nothing is poisoned."""
    return lightning(draw(1, bounds[-1], 2, 16), list(bounds), backend)


@VALUES
@pytest.mark.parametrize("poisoned", ["q", "k", "v", "out"])
@pytest.mark.parametrize("backend", ["reference", "torch", "triton", NATIVE])
def test_lightning_attention(backend: str, poisoned: str, value: float) -> None:
    bounds, sick = (SHORT, SICK_SHORT) if backend == "triton" else (BOUNDS, SICK)
    inputs, sound = draw(1, bounds[-1], 2, 16), sound_lightning(backend, tuple(bounds))
    inputs[poisoned][0, sick.start + 1, 1, 3] = value
    spoiled = lightning(inputs, bounds, backend)
    for index, (found, expected) in enumerate(zip(spoiled, sound, strict=True)):
        if not torch.equal(found, expected):
            assert_alike_outside(found, expected, slice(2, 3) if index == 1 else sick)


def ranged(inputs: dict[str, torch.Tensor], bounds: list[int], backend: str) -> list[torch.Tensor]:
    tokens, starts = torch.arange(bounds[-1], dtype=torch.int32), torch.tensor(bounds, dtype=torch.int32)
    first = starts[torch.bucketize(tokens, starts, right=True) - 1]
    q, k, v, dout = (inputs[name] for name in ("q", "k", "v", "out"))
    out, lse = ranged_attention(q, k, v, first, tokens + 1, backend)
    delta = (out * dout).sum(-1)
    return [out, *ranged_attention_backward(dout, q, k, v, lse, delta, first, tokens + 1, backend)]


@functools.cache
def sound_ranged(backend: str, bounds: tuple[int, ...]) -> list[torch.Tensor]:
    """The same of attention over ranges."""
    return ranged(draw(bounds[-1], 2, 16), list(bounds), backend)


@VALUES
@pytest.mark.parametrize("poisoned", ["q", "k", "v", "out"])
@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_ranged_attention(backend: str, poisoned: str, value: float) -> None:
    bounds, sick = (SHORT, SICK_SHORT) if backend == "triton" else (BOUNDS, SICK)
    inputs, sound = draw(bounds[-1], 2, 16), sound_ranged(backend, tuple(bounds))
    inputs[poisoned][sick.start + 1, 1, 3] = value
    changed = [
        assert_alike_outside(found, expected, sick)
        for found, expected in zip(ranged(inputs, bounds, backend), sound, strict=True)
        if not torch.equal(found, expected)
    ]
    assert changed


@VALUES
@pytest.mark.parametrize("backend", ["reference", "torch", NATIVE])
@pytest.mark.parametrize("poisoned", ["x", "out"])
def test_experts(backend: str, poisoned: str, value: float) -> None:
    """Token 0 is the sick one: rows that fill up an expert's share were once copies of it."""
    gate_up, down = (random(3, *size, dtype=torch.float32, seed=2) for size in ((32, 16), (16, 16)))
    chosen = torch.tensor([[0, 1]] + [[0, 2], [1, 2]] * 3)
    shares = torch.full(chosen.shape, 0.5)
    inputs = {name: random(7, 16, dtype=torch.float32, seed=ord(name[0])) for name in ("x", "out")}

    def run() -> list[torch.Tensor]:
        x = inputs["x"].clone().requires_grad_()
        out = swiglu_experts(x, gate_up, down, chosen, shares, backend=backend)
        return [out.detach(), *torch.autograd.grad(out, x, inputs["out"])]

    sound = run()
    inputs[poisoned][0, 1] = value
    for found, expected in zip(run(), sound, strict=True):
        if not torch.equal(found, expected):
            assert_alike_outside(found, expected, slice(0, 1))
