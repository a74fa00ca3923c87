"""The layer of experts against every expert on every token, in float64."""

import pytest
import torch
from exactness import assert_all_within_noise, examples, random
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import silu

from leyden.ops import drop_over_capacity, route, swiglu_experts

D, F = 12, 10
WHOLE_VECTORS = (32, 16)
"""Widths that native code takes in one pass, on processors where that pays."""
DTYPES = (torch.bfloat16, torch.float32, torch.float64)


def draw(
    num_tokens: int, num_experts: int, top_k: int, dtype: torch.dtype, widths: tuple[int, int] = (D, F)
) -> list[torch.Tensor]:
    """x, gate_up, down and the weights of the assignments."""
    wide, (dim, width) = torch.promote_types(dtype, torch.float32), widths
    return [
        random(num_tokens, dim, dtype=dtype, seed=1),
        random(num_experts, 2 * width, dim, seed=2).div(dim**0.5).to(dtype),
        random(num_experts, dim, width, seed=3).div(width**0.5).to(dtype),
        random(num_tokens, top_k, seed=4).softmax(-1).to(wide),
    ]


def by_formula(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """One assignment after another, each product in the dtype of x."""
    rows = []
    for n in range(x.shape[0]):
        total = torch.zeros(x.shape[1], dtype=weights.dtype)
        for j in range(experts.shape[1]):
            if kept is None or kept[n, j]:
                expert = experts[n, j]
                gate, up = (gate_up[expert] @ x[n]).chunk(2)
                total = total + weights[n, j] * (down[expert] @ (silu(gate) * up))
        rows.append(total.to(x.dtype) + 0 * x[n])
    return torch.stack(rows) + 0 * (gate_up.sum() + down.sum() + weights.sum()).to(x.dtype)


def check(inputs: list[torch.Tensor], experts: torch.Tensor, kept: torch.Tensor | None) -> None:
    assert_all_within_noise(
        lambda x, g, d, w: [swiglu_experts(x, g, d, experts, w, kept)],
        lambda x, g, d, w: [by_formula(x, g, d, w, experts, kept)],
        lambda x, g, d, w: [swiglu_experts(x, g, d, experts, w, kept, backend="reference")],
        inputs,
    )


@given(num_tokens=st.integers(1, 30), num_experts=st.integers(1, 6), capacity=st.integers(0, 8), data=st.data())
@examples(12)
def test_routed_tokens(num_tokens: int, num_experts: int, capacity: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    inputs = draw(num_tokens, num_experts, top_k, torch.float64)
    routing = route(random(num_tokens, num_experts, seed=5), top_k)
    check(inputs, routing.experts, None)
    check(inputs, routing.experts, drop_over_capacity(routing, capacity, "probability").kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_experts", "top_k", "capacity"), [(4, 2, 12), (32, 2, 3), (1, 1, 20), (5, 5, 25)])
@pytest.mark.parametrize("widths", [(D, F), WHOLE_VECTORS])
def test_precision(dtype: torch.dtype, num_experts: int, top_k: int, capacity: int, widths: tuple[int, int]) -> None:
    inputs = draw(40, num_experts, top_k, dtype, widths)
    routing = route(random(40, num_experts, seed=5), top_k)
    check(inputs, routing.experts, None)
    check(inputs, routing.experts, drop_over_capacity(routing, capacity, "position").kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(D, F), WHOLE_VECTORS])
def test_a_backward_to_come_changes_no_bit(dtype: torch.dtype, widths: tuple[int, int]) -> None:
    """Training and evaluation read the same values, on every processor; the rows that fill up are no part of them."""
    x, gate_up, down, weights = draw(37, 5, 2, dtype, widths)
    routing = route(random(37, 5, seed=5), 2)
    for kept in (None, drop_over_capacity(routing, 9, "position").kept):
        alone = swiglu_experts(x, gate_up, down, routing.experts, weights, kept)
        trained = swiglu_experts(x, gate_up.requires_grad_(), down, routing.experts, weights, kept)
        assert trained.requires_grad and torch.equal(trained, alone)
        gate_up = gate_up.detach()


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_without_tokens_have_zero_gradients(dtype: torch.dtype) -> None:
    x, gate_up, down, weights = (t.requires_grad_() for t in draw(9, 5, 2, dtype))
    experts = torch.tensor([[3, 1]]).expand(9, 2)
    swiglu_experts(x, gate_up, down, experts, weights).sum().backward()
    assert gate_up.grad is not None
    assert down.grad is not None
    for idle in (0, 2, 4):
        assert torch.equal(gate_up.grad[idle], torch.zeros_like(gate_up[idle]))
        assert torch.equal(down.grad[idle], torch.zeros_like(down[idle]))
    check([t.detach() for t in (x, gate_up, down, weights)], experts, None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_assignments_dropped(dtype: torch.dtype) -> None:
    inputs = [t.requires_grad_() for t in draw(6, 3, 2, dtype)]
    x, gate_up, down, weights = inputs
    experts = torch.tensor([[0, 2]]).expand(6, 2)
    out = swiglu_experts(x, gate_up, down, experts, weights, torch.zeros(6, 2, dtype=torch.bool))
    assert torch.equal(out, torch.zeros_like(x))
    for gradient, t in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True):
        assert torch.equal(gradient, torch.zeros_like(t))


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("widths", [(48, 80), (272, 16)])
def test_gradients_over_several_blocks(dtype: torch.dtype, widths: tuple[int, int]) -> None:
    """More rows than a block of any body has, of experts that differ in size and of one that has none."""
    inputs = draw(700, 4, 2, dtype, widths)
    experts = torch.stack([torch.zeros(700).long(), 1 + torch.arange(700).remainder(3).clamp(max=1)], 1)
    kept = torch.arange(1400).view(700, 2).remainder(7) > 0
    bodies = [
        lambda x, g, d, w, backend=backend: [swiglu_experts(x, g, d, experts, w, kept, backend=backend)]
        for backend in ("auto", "torch", "reference")
    ]
    assert_all_within_noise(*bodies, inputs)


def test_a_dropped_assignment_is_no_read() -> None:
    """Not a product by zero: infinite weights of a dropped expert do no harm."""
    x, gate_up, down, weights = draw(4, 2, 2, torch.float32)
    gate_up[1] = torch.inf
    experts = torch.tensor([[0, 1]]).expand(4, 2)
    kept = torch.tensor([[True, False]]).expand(4, 2)
    assert swiglu_experts(x, gate_up, down, experts, weights, kept).isfinite().all()


def test_no_tokens() -> None:
    x, gate_up, down, weights = draw(0, 3, 2, torch.float32)
    experts = torch.zeros(0, 2, dtype=torch.int64)
    assert swiglu_experts(x, gate_up, down, experts, weights).shape == (0, D)


def test_gradients_by_finite_differences() -> None:
    inputs = [t.requires_grad_() for t in draw(5, 3, 2, torch.float64)]
    experts = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]])
    kept = torch.tensor([[True, True], [False, True], [True, False], [True, True], [False, False]])
    assert torch.autograd.gradcheck(
        lambda x, g, d, w: swiglu_experts(x, g, d, experts, w, kept), inputs, fast_mode=True
    )


@pytest.mark.parametrize("backend", ["triton", "grouped"])
def test_a_backend_that_cannot_run_is_refused(backend: str) -> None:
    x, gate_up, down, weights = draw(2, 2, 1, torch.float32)
    with pytest.raises(ValueError, match="swiglu_experts"):
        swiglu_experts(x, gate_up, down, torch.zeros(2, 1, dtype=torch.int64), weights, backend=backend)
