"""Weights in 8 bits: what rounding does to them, and the product against the whole matrix in float64."""

from collections.abc import Callable

import pytest
import torch
from exactness import DTYPES, assert_within_noise, random

from leyden.ops import Int8Matrices, int8_linear, quantize_rows, route, swiglu_experts
from leyden.ops.int8_linear import quantization

SHAPES = [(1, 1, 1), (3, 17, 5), (16, 40, 64), (33, 130, 71), (0, 4, 4), (4, 0, 4)]
"""Rows, outputs, inputs."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 rows or a few more, so that small matrices have several."""
    monkeypatch.setattr(quantization, "BLOCK_ELEMENTS", 2048)


def draw(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight = random(outputs, inputs, dtype=torch.float32, seed=1) * random(outputs, 1, dtype=torch.float32, seed=2)
    return random(rows, inputs, dtype=dtype, seed=3), *quantize_rows(weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_off_by_half_a_scale_at_most(dtype: torch.dtype) -> None:
    matrix = random(2, 70, 33, seed=1).to(dtype)
    matrix[0, 5] = 0
    weight, scale = quantize_rows(matrix)
    assert weight.dtype == torch.int8 and scale.dtype == torch.float32 and scale.shape == (2, 70)
    back = weight.double() * scale.double()[..., None]
    assert ((back - matrix.double()).abs() <= 0.5001 * scale.double()[..., None]).all()
    assert (weight.abs().amax(-1) == 127)[scale > 0].all() and not weight[0, 5].any()
    assert torch.equal(weight, -quantize_rows(-matrix)[0])


def test_tiny_and_empty_rows() -> None:
    weight, scale = quantize_rows(torch.tensor([[1e-44, -1e-44], [1e-38, -1e-38], [3e38, -3e38]]))
    assert not weight[0].any() and weight[1].tolist() == [127, -127] and weight[2].tolist() == [127, -127]
    assert scale.isfinite().all()
    assert quantize_rows(torch.zeros(3, 0))[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="infinite or no number"):
        quantize_rows(torch.tensor([[1.0, 2.0], [1.0, value]]))


def judge(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, y: torch.Tensor) -> None:
    plain = x @ (weight.float() * scale[:, None]).to(x.dtype).t()
    exact = int8_linear(x.double(), weight, scale, "reference")
    assert y.dtype == x.dtype
    assert_within_noise(y, plain, exact)


@pytest.mark.parametrize("backend", ["auto", "torch", "native"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_product(shape: tuple[int, int, int], dtype: torch.dtype, backend: str) -> None:
    if backend == "native" and dtype in (torch.float16, torch.float64):
        pytest.skip("there is no native body for it")
    x, weight, scale = draw(*shape, dtype)
    judge(x, weight, scale, int8_linear(x, weight, scale, backend))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_in_triton(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    x, weight, scale = draw(*shape, dtype)
    judge(x, weight, scale, int8_linear(x.to(device), weight.to(device), scale.to(device), "triton").cpu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [15, 17, 65, 255, 256])
def test_numbers_of_rows_in_triton(rows: int, dtype: torch.dtype, device: str) -> None:
    """On either side of where the tiles change, and where the matrix library takes over."""
    x, weight, scale = draw(rows, 36, 70, dtype)
    judge(x, weight, scale, int8_linear(x.to(device), weight.to(device), scale.to(device), "triton").cpu())


@pytest.mark.parametrize("classes", [(1, 16, 17, 64), (65, 128, 255)])
def test_a_row_has_the_same_bits_among_a_class_of_numbers(classes: tuple[int, ...], device: str) -> None:
    x, weight, scale = (of.to(device) for of in draw(classes[-1], 70, 300, torch.bfloat16))
    whole = int8_linear(x, weight, scale, "triton")
    for rows in classes:
        assert torch.equal(int8_linear(x[:rows], weight, scale, "triton"), whole[:rows])


def test_integers_and_scales_at_their_ends_in_triton(device: str) -> None:
    """All of 127 or -127, the least and greatest scales, and rows of zeros."""
    x = random(3, 40, dtype=torch.float32, seed=1)
    weight = torch.tensor([127, -127, 0, 127, -127], dtype=torch.int8)[:, None].expand(5, 40).contiguous()
    scale = torch.tensor([1e-45, 1e-38, 3e38, 1.0, 1e30])
    y = int8_linear(x.to(device), weight.to(device), scale.to(device), "triton").cpu()
    exact = (x.double() @ weight.double().t()) * scale.double()
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-44)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    x, weight, scale = draw(320, 200, 96, dtype)
    whole = int8_linear(x, weight, scale)
    for rows in (16, 48, 160):
        assert torch.equal(int8_linear(x[:rows], weight, scale), whole[:rows])
    assert torch.equal(int8_linear(x.view(4, 80, 96), weight, scale), whole.view(4, 80, 200))


def test_views_are_read_as_their_copies() -> None:
    x, weight, scale = draw(8, 12, 30, torch.float32)
    wide = torch.stack([x, x], -1)[..., 0]
    assert torch.equal(int8_linear(wide, weight, scale), int8_linear(x, weight, scale))


def _experts(dtype: torch.dtype) -> tuple[torch.Tensor, Int8Matrices, Int8Matrices, torch.Tensor, torch.Tensor]:
    gate_up = quantize_rows(random(4, 40, 24, dtype=torch.float32, seed=1) / 5)
    down = quantize_rows(random(4, 24, 20, dtype=torch.float32, seed=2) / 5)
    routing = route(random(50, 4, dtype=torch.float32, seed=3), 2)
    return (
        random(50, 24, dtype=dtype, seed=4),
        Int8Matrices(*gate_up, dtype),
        Int8Matrices(*down, dtype),
        routing.experts,
        routing.weights,
    )


@pytest.mark.parametrize("backend", ["auto", "torch", "native"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_experts(dtype: torch.dtype, backend: str) -> None:
    if backend == "native" and dtype == torch.float64:
        pytest.skip("there is no native body for it")
    x, gate_up, down, experts, weights = _experts(dtype)
    y = swiglu_experts(x, gate_up, down, experts, weights, None, backend)
    plain = swiglu_experts(x, gate_up.to_float(), down.to_float(), experts, weights, None, "torch")
    wide = (Int8Matrices(part.weight, part.scale, torch.float64) for part in (gate_up, down))
    assert_within_noise(y, plain, swiglu_experts(x.double(), *wide, experts, weights, None, "reference"))


def _refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_what_does_not_fit_is_refused() -> None:
    x, weight, scale = draw(4, 6, 8, torch.float32)
    _refused(lambda: int8_linear(x[:, :7], weight, scale), r"given \(4, 7\), \(6, 8\) and \(6,\)")
    _refused(lambda: int8_linear(x, weight.float(), scale), "weight int8")
    _refused(lambda: int8_linear(x, weight, scale, "cuda"), "backend 'cuda' is unknown")
    tokens, *rest = _experts(torch.float32)
    _refused(lambda: swiglu_experts(tokens.requires_grad_(), *rest), "train additions to them")
    one_of_them = (rest[0].to_float(), *rest[1:])
    _refused(lambda: swiglu_experts(tokens.detach(), *one_of_them, None, "triton"), "no Triton body")
