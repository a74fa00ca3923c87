"""The norms against their formulas in float64."""

import pytest
import torch
from exactness import DTYPES, Op, assert_all_within_noise, examples, random
from hypothesis import given
from hypothesis import strategies as st

from leyden.ops import gated_rms_norm, rms_norm
from leyden.ops.rms_norm.reference import gated_rms_norm_reference, rms_norm_reference

SHAPES = st.sampled_from([(20, 3), (7, 5), (2, 3, 33), (0, 4), (1, 300, 64), (130, 96)])


def draw(shape: tuple[int, ...], dtype: torch.dtype, *, gated: bool) -> list[torch.Tensor]:
    """x, the gate if there is one, and the weight, which is float32 whatever the dtype of x."""
    wide = torch.promote_types(dtype, torch.float32)
    x = [random(*shape, dtype=dtype, seed=seed) for seed in range(1 + gated)]
    return [*x, 1 + random(shape[-1], dtype=wide, seed=9) / 4]


def of_the_formula(norm: Op, eps: float) -> Op:
    return lambda *x: [norm(*x, eps)]


@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=SHAPES, eps=st.sampled_from([1e-6, 1e-5, 0.1]))
@examples(12)
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...], eps: float) -> None:
    reference = of_the_formula(rms_norm_reference, eps)
    inputs = draw(shape, dtype, gated=False)
    assert_all_within_noise(of_the_formula(rms_norm, eps), reference, reference, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=SHAPES, eps=st.sampled_from([1e-6, 1e-5, 0.1]))
@examples(12)
def test_gated_rms_norm(dtype: torch.dtype, shape: tuple[int, ...], eps: float) -> None:
    reference = of_the_formula(gated_rms_norm_reference, eps)
    inputs = draw(shape, dtype, gated=True)
    assert_all_within_noise(of_the_formula(gated_rms_norm, eps), reference, reference, inputs)


def test_the_reference_by_hand() -> None:
    x, weight = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    expected = torch.tensor([[3.0, 8.0]], dtype=torch.float64) / (12.5 + 0.5) ** 0.5
    torch.testing.assert_close(rms_norm(x, weight, 0.5), expected)
    torch.testing.assert_close(rms_norm_reference(x, weight, 0.5), expected)
    gate = torch.zeros_like(x)
    torch.testing.assert_close(gated_rms_norm(x, gate, weight, 0.5), expected / 2)
    torch.testing.assert_close(gated_rms_norm_reference(x, gate, weight, 0.5), expected / 2)


def test_gradients_by_finite_differences() -> None:
    x, gate, weight = (t.requires_grad_() for t in draw((3, 5), torch.float64, gated=True))
    assert torch.autograd.gradcheck(lambda *t: rms_norm(*t, 1e-3), (x, weight))
    assert torch.autograd.gradcheck(lambda *t: gated_rms_norm(*t, 1e-3), (x, gate, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_of_zeros_have_finite_gradients(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 4, dtype=dtype, requires_grad=True)
    weight = torch.ones(4, requires_grad=True)
    rms_norm(x, weight, 1e-6).sum().backward()
    for gradient in (x.grad, weight.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_equal_copies(dtype: torch.dtype) -> None:
    both = random(2, 9, 24, dtype=dtype)
    x, gate = both.split(12, dim=-1)
    weight = torch.ones(12, dtype=torch.promote_types(dtype, torch.float32))
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), rms_norm(x.contiguous(), weight, 1e-6))
    of_copies = gated_rms_norm(x.contiguous(), gate.contiguous(), weight, 1e-6)
    torch.testing.assert_close(gated_rms_norm(x, gate, weight, 1e-6), of_copies)


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_the_backward_keeps_the_input_and_one_number_a_row(backend: str) -> None:
    """The normed values are computed again."""
    x, weight = torch.randn(7, 33, requires_grad=True), torch.randn(33, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        rms_norm(x, weight, 1e-5, backend)
    shapes = sorted(tuple(size for size in tensor.shape if size > 1) for tensor in saved)
    assert shapes == [(7,), (7, 33), (33,)]
    assert next(tensor for tensor in saved if tensor.numel() == 7 * 33).data_ptr() == x.data_ptr()
