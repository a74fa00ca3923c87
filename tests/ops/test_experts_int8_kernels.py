"""The Triton body of experts in 8 bits: in Triton's interpreter on a CPU, compiled on a GPU, the same tests."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from exactness import assert_within_noise, random
from expert_cases import Size, in_dtypes

from leyden.ops import Int8Matrices, drop_over_capacity, quantize_rows, route, swiglu_experts

launch = importlib.import_module("leyden.ops.experts.launch_int8")

D, F = 21, 37


def draw(
    num_tokens: int, num_experts: int, top_k: int, dtype: torch.dtype
) -> tuple[torch.Tensor, Int8Matrices, Int8Matrices, torch.Tensor]:
    """x, gate_up, down and the weights of the assignments."""
    gate_up = quantize_rows(random(num_experts, 2 * F, D, dtype=torch.float32, seed=2) / D**0.5)
    down = quantize_rows(random(num_experts, D, F, dtype=torch.float32, seed=3) / F**0.5)
    weights = random(num_tokens, top_k, seed=4).softmax(-1).float()
    return (
        random(num_tokens, D, dtype=dtype, seed=1),
        Int8Matrices(*gate_up, dtype),
        Int8Matrices(*down, dtype),
        weights,
    )


def moved(stack: Int8Matrices, device: str) -> Int8Matrices:
    return Int8Matrices(stack.weight.to(device), stack.scale.to(device), stack.dtype)


def check(
    drawn: tuple[torch.Tensor, Int8Matrices, Int8Matrices, torch.Tensor],
    experts: torch.Tensor,
    kept: torch.Tensor | None,
    device: str,
) -> torch.Tensor:
    """Under the precision rule, against the matrices in float64; the plain computation rounds them to x's dtype."""
    x, gate_up, down, weights = drawn
    there = (x.to(device), moved(gate_up, device), moved(down, device), experts.to(device), weights.to(device))
    mine = swiglu_experts(*there, None if kept is None else kept.to(device), "triton").cpu()
    plain = swiglu_experts(x, gate_up.to_float(), down.to_float(), experts, weights, kept, "torch")
    wide_gate_up, wide_down = (Int8Matrices(of.weight, of.scale, torch.float64) for of in (gate_up, down))
    exact = swiglu_experts(x.double(), wide_gate_up, wide_down, experts, weights, kept, "reference")
    assert mine.dtype == x.dtype
    assert_within_noise(mine, plain, exact)
    return mine


@pytest.mark.parametrize(("size", "dtype"), in_dtypes((19, 4, 2, 6), [(1, 1, 1, 1), (6, 33, 2, 1), (7, 5, 5, 3)]))
def test_routed_tokens(size: Size, dtype: torch.dtype, device: str) -> None:
    num_tokens, num_experts, top_k, capacity = size
    drawn = draw(num_tokens, num_experts, top_k, dtype)
    routing = route(random(num_tokens, num_experts, seed=5), top_k)
    check(drawn, routing.experts, None, device)
    check(drawn, routing.experts, drop_over_capacity(routing, capacity, "probability").kept, device)


@pytest.mark.parametrize("num_tokens", [32, 33, 128, 129, pytest.param(160, marks=pytest.mark.slow)])
def test_one_expert_has_all(num_tokens: int, device: str) -> None:
    """The others are empty; the tiles for few rows, for some, and for many, and one row more than blocks of them."""
    for expert in (0, 1):
        check(draw(num_tokens, 2, 1, torch.bfloat16), torch.full((num_tokens, 1), expert), None, device)


def test_more_blocks_of_rows_than_run_together(device: str) -> None:
    experts = torch.tensor([0, 5, 5, 2, 7, 7, 7, 1, 2] * 9)[:, None]
    check(draw(81, 9, 1, torch.float32), experts, None, device)


@pytest.mark.parametrize("tile", ["_FEW", "_SOME", "_MANY"])
def test_every_tile(tile: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.Tile, "of", lambda dtype, rows: getattr(launch, tile))
    routing = route(random(45, 3, seed=5), 2)
    check(draw(45, 3, 2, torch.bfloat16), routing.experts, routing.experts != 1, device)


def test_all_assignments_dropped(device: str) -> None:
    experts, kept = torch.tensor([[0, 2]]).expand(6, 2), torch.zeros(6, 2, dtype=torch.bool)
    assert not check(draw(6, 3, 2, torch.float32), experts, kept, device).any()


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e15])
def test_scales_at_their_ends(scale: float, device: str) -> None:
    """Integers at theirs; a matrix of zeros adds nothing, whatever its scale."""
    x, gate_up, down, weights = draw(5, 3, 1, torch.float32)
    gate_up.weight.copy_(gate_up.weight.sign() * 127)
    gate_up.scale[:], down.scale[:] = 1 / (127 * D**0.5), scale
    down.weight[2], down.scale[2] = 0, 3e38
    out = check((x, gate_up, down, weights), torch.tensor([[0], [1], [2], [0], [1]]), None, device)
    assert not out[2].any()


def test_a_dropped_assignment_is_no_read(device: str) -> None:
    x, gate_up, down, weights = draw(4, 2, 2, torch.float32)
    gate_up.scale[1] = torch.inf
    experts, kept = torch.tensor([[0, 1]]).expand(4, 2), torch.tensor([[True, False]]).expand(4, 2)
    there = (x.to(device), moved(gate_up, device), moved(down, device), experts.to(device), weights.to(device))
    assert swiglu_experts(*there, kept.to(device), "triton").isfinite().all()


def test_a_token_that_is_no_number_stays_alone(device: str) -> None:
    x, gate_up, down, weights = draw(9, 2, 2, torch.float32)
    experts, bad = torch.tensor([[0, 1]]).expand(9, 2), x.clone()
    bad[4] = torch.nan
    others = [n for n in range(9) if n != 4]
    there = moved(gate_up, device), moved(down, device), experts.to(device), weights.to(device), None, "triton"
    right, wrong = (swiglu_experts(of.to(device), *there) for of in (x, bad))
    assert wrong[4].isnan().all() and torch.equal(wrong[others], right[others])


def test_no_tokens(device: str) -> None:
    x, gate_up, down, weights = draw(0, 2, 2, torch.float32)
    experts = torch.zeros(0, 2, dtype=torch.int64, device=device)
    out = swiglu_experts(
        x.to(device), moved(gate_up, device), moved(down, device), experts, weights.to(device), None, "triton"
    )
    assert out.shape == (0, D)


def test_the_op_is_what_it_says(device: str) -> None:
    x, gate_up, down, weights = draw(5, 3, 2, torch.float32)
    stacks = (gate_up.weight, gate_up.scale, down.weight, down.scale)
    inputs = [of.to(device) for of in (x, *stacks, torch.tensor([[0, 2]]).expand(5, 2), weights)]
    torch.library.opcheck(launch._forward, (*inputs, None))


@pytest.mark.gpu
def test_nothing_is_read_back(no_reading_back: Callable[[], AbstractContextManager[None]]) -> None:
    x, gate_up, down, weights = draw(32, 4, 2, torch.bfloat16)
    experts = route(random(32, 4, seed=5), 2).experts.cuda()
    there = x.cuda(), moved(gate_up, "cuda"), moved(down, "cuda"), experts, weights.cuda()
    swiglu_experts(*there)
    with no_reading_back():
        swiglu_experts(*there)
