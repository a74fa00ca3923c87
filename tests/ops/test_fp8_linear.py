"""Products in 8-bit tiles: the rounding against E4M3 written out, the products and their gradients against float64."""

import itertools
import math

import pytest
import torch
from exactness import DTYPES, assert_within_noise, random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from leyden.ops import fp8_linear, swiglu_experts_fp8
from leyden.ops.fp8_linear.quantization import quantize_tiles
from leyden.ops.fp8_linear.reference import fp8_linear_backward_reference, fp8_linear_reference, tiles_of


def all_numbers() -> torch.Tensor:
    """The finite ones of E4M3 that are not negative, by the definition of the format: 127 of them."""
    found = [m / 8 * 2.0**-6 for m in range(8)]
    found += [(1 + m / 8) * 2.0 ** (e - 7) for e, m in itertools.product(range(1, 16), range(8)) if (e, m) != (15, 7)]
    return torch.tensor(found, dtype=torch.float64)


def test_the_nearest_number_of_the_format_is_taken_and_of_two_the_even_one() -> None:
    numbers = all_numbers()
    middles = (numbers[:-1] + numbers[1:]) / 2
    below, above = middles * (1 - 1e-7), middles * (1 + 1e-7)
    even = torch.arange(len(middles)) % 2 == 0  # of two neighbours, the one with an even last bit
    for x, expected in (
        (numbers, numbers),
        (below, numbers[:-1]),
        (above, numbers[1:]),
        (middles, torch.where(even, numbers[:-1], numbers[1:])),
    ):
        row = torch.cat([x, torch.tensor([448.0], dtype=torch.float64)])  # the scale is then 1
        both = torch.stack([row, -row])
        target = torch.stack([expected, -expected])
        assert torch.equal(quantize_tiles(both.float(), 1, 128).wide()[:, :-1].double(), target)
        assert torch.equal(tiles_of(both, 1, 128)[:, :-1], target)


@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    tile=st.sampled_from([(1, 128), (128, 1), (128, 128)]),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_tiles(rows: int, columns: int, tile: tuple[int, int], dtype: torch.dtype) -> None:
    """Also those at the edges, which are smaller, and of numbers that span many powers of two."""
    x = (random(rows, columns, seed=1) * torch.exp(3 * random(rows, 1, seed=2))).to(dtype)
    x[0] = 0
    tiles = quantize_tiles(x, *tile)
    assert tiles.values.dtype == torch.float8_e4m3fn and tiles.values.shape == x.shape
    assert tiles.scales.shape == (-(-rows // tile[0]), -(-columns // tile[1]))
    assert torch.equal(tiles.wide(), tiles_of(x, *tile))
    found = tiles.wide().double()
    largest = tiles.scales.repeat_interleave(tile[0], 0)[:rows].repeat_interleave(tile[1], 1)[:, :columns].double()
    assert ((found - x.double()).abs() <= torch.maximum(x.double().abs() / 16, largest / 1024) * 1.0001).all()


def test_tiny_huge_and_no_numbers() -> None:
    x = torch.tensor([[1e-45, -1e-45], [0.0, 0.0], [3e38, -1e38], [math.inf, 1.0], [math.nan, 1.0], [2.0, 1.0]])
    found = quantize_tiles(x, 1, 128).wide()
    assert found[:3].isfinite().all() and not found[1].any()
    assert found[2].tolist() == pytest.approx([3e38, -1e38], rel=0.07)
    assert found[3:5].isnan().any(1).all() and torch.equal(found[5], x[5])


SHAPES = [(1, 1, 1), (3, 17, 5), (150, 130, 257), (129, 256, 128), (0, 4, 4)]
"""Tokens, outputs, inputs."""


def results(
    x: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor, backend: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    y = fp8_linear(*leaves, backend)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), SHAPES)
def test_products_and_gradients(dtype: torch.dtype, tokens: int, outputs: int, inputs: int) -> None:
    x, weight, dy = (
        random(*shape, dtype=dtype, seed=seed)
        for seed, shape in enumerate([(tokens, inputs), (outputs, inputs), (tokens, outputs)])
    )
    exact = [fp8_linear_reference(x, weight), *fp8_linear_backward_reference(dy, x, weight)]
    for found, e in zip(results(x, weight, dy, "auto"), exact, strict=True):
        assert found.dtype == dtype
        unit = {torch.bfloat16: 2.0**-8, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]  # of the result, or of sums
        torch.testing.assert_close(found.double(), e, rtol=unit, atol=unit * float(e.abs().max()) if e.numel() else 0)
    for found, e in zip(results(x, weight, dy, "reference"), exact, strict=True):
        assert torch.equal(found, e.to(dtype))


def test_what_8_bits_can_say_is_multiplied_exactly() -> None:
    """Whole numbers up to 7, one of them in every tile: scales are 1/64, and everything is that of a plain layer."""
    draw = torch.Generator().manual_seed(0)
    x, weight, dy = (
        torch.randint(-7, 8, shape, generator=draw).float() for shape in ((200, 300), (140, 300), (200, 140))
    )
    for matrix in (x, dy):
        matrix[:, ::128], matrix[::128] = 7, 7
    weight[::128, ::128] = 7
    y, dx, dweight = results(x, weight, dy, "torch")
    assert torch.equal(y, x @ weight.T)
    assert torch.equal(dx, dy @ weight)
    assert torch.equal(dweight, dy.T @ x)


def test_how_far_8_bits_are_from_the_plain_product() -> None:
    """Every factor is off by a sixteenth at most, or by 2^-10 of its tile's largest number, 448 scales."""
    x, weight = random(70, 300, dtype=torch.float32, seed=1), random(90, 300, dtype=torch.float32, seed=2)
    a, b = x.abs().double(), weight.abs().double()
    da = torch.maximum(a / 16, quantize_tiles(x, 1, 128).scales.repeat_interleave(128, 1)[:, :300].double() / 1024)
    db = torch.maximum(b / 16, torch.full_like(b, float(quantize_tiles(weight, 128, 128).scales.max()) / 1024))
    bound = da @ b.T + a @ db.T + da @ db.T
    error = (fp8_linear(x, weight).double() - x.double() @ weight.double().T).abs()
    assert (error <= 1.001 * bound).all()
    typical = error.square().mean().sqrt() / (x.double() @ weight.double().T).square().mean().sqrt()
    assert 0.02 < typical < 0.05  # two factors, each with the rounding noise of 3 bits


def test_rows_of_several_dims_and_of_one() -> None:
    x, weight = random(2, 3, 200), random(5, 200, seed=1)
    torch.testing.assert_close(fp8_linear(x, weight)[1, 2], fp8_linear(x[1, 2], weight), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kept", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_experts(dtype: torch.dtype, kept: int | None) -> None:
    """Each expert by itself, with the tokens that chose it in their order; one has none."""
    E, D, F, N, k = 4, 140, 24, 150, 2
    x, gate_up, down, dout = (
        random(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate([(N, D), (E, 2 * F, D), (E, D, F), (N, D)])
    )
    experts = torch.stack([torch.arange(N) % 2, 2 - torch.arange(N) % 2], dim=1)  # never the last
    weights = random(N, k, dtype=torch.promote_types(dtype, torch.float32), seed=9).abs()
    stay = None if kept is None else (torch.arange(N * k) % kept > 0).view(N, k)
    leaves = [t.clone().requires_grad_() for t in (x, gate_up, down, weights)]
    out = swiglu_experts_fp8(*leaves[:3], experts, leaves[3], stay)
    found = [out.detach(), *torch.autograd.grad(out, leaves, dout)]

    exact = [torch.zeros(t.shape, dtype=torch.float64) for t in (x, x, gate_up, down, weights)]
    wide, dwide = x.double(), dout.double()
    for e in range(E):
        chosen = experts == e if stay is None else (experts == e) & stay
        token, place = chosen.nonzero().unbind(1)
        rows, share = wide[token], weights.double()[token, place][:, None]
        projected = fp8_linear_reference(rows, gate_up[e]).requires_grad_()
        gate, up = projected.chunk(2, 1)
        hidden = silu(gate) * up
        y = fp8_linear_reference(hidden.detach(), down[e])
        exact[0].index_add_(0, token, y * share)
        exact[4][token, place] = (y * dwide[token]).sum(1)
        dhidden, exact[3][e] = fp8_linear_backward_reference(dwide[token] * share, hidden.detach(), down[e])
        (dprojected,) = torch.autograd.grad(hidden, projected, dhidden)
        drows, exact[2][e] = fp8_linear_backward_reference(dprojected, rows, gate_up[e])
        exact[1].index_add_(0, token, drows)
    for a, b in zip(found, exact, strict=True):
        # In float32 the activation is rounded otherwise here, and a number of it may become its neighbour in 8 bits.
        tolerance = {torch.float32: 3e-3, torch.float64: 1e-11}[dtype]
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max()
    assert not found[2][3].any() and not found[3][3].any()


def test_experts_without_a_token() -> None:
    x, gate_up, down = random(3, 8), random(2, 6, 8), random(2, 8, 3)
    experts, weights = torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1, dtype=torch.float64)
    assert not swiglu_experts_fp8(x, gate_up, down, experts, weights, torch.zeros(3, 1, dtype=torch.bool)).any()


def test_noise_is_that_of_the_formula_in_float32() -> None:
    """bfloat16 results are those of the tiles in float32, rounded once."""
    x, weight = random(64, 256, dtype=torch.bfloat16), random(96, 256, dtype=torch.bfloat16, seed=1)
    plain = (tiles_of(x, 1, 128).float() @ tiles_of(weight, 128, 128).float().T).bfloat16()
    assert_within_noise(fp8_linear(x, weight), plain, fp8_linear_reference(x, weight))


@pytest.mark.parametrize(
    ("x", "weight", "said"),
    [
        (torch.ones(3, 4), torch.ones(5, 3), r"x \[..., K\] and weight \[N, K\] expected; given \(3, 4\)"),
        (torch.ones(3, 4), torch.ones(4), "expected; given"),
        (torch.ones(3, 4), torch.ones(5, 4).bfloat16(), "one dtype"),
        (torch.ones(3, 4).int(), torch.ones(5, 4).int(), "a floating one"),
    ],
)
def test_what_does_not_fit_is_refused(x: torch.Tensor, weight: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fp8_linear(x, weight)


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_a_body_that_is_not_there_is_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=f"has no {backend}|has no Triton"):
        fp8_linear(torch.ones(3, 4), torch.ones(5, 4), backend)
