"""Experts with low-rank additions, and 8-bit products with a gradient, against float64 twins."""

import pytest
import torch

from leyden.ops import Int8Matrices, LowRankExperts, int8_linear, quantize_rows, swiglu_experts_low_rank

E, D, F, R, K = 5, 12, 8, 3, 2


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 29, 700])
@pytest.mark.parametrize("drops", [False, True])
def test_outputs_and_gradients_are_those_of_the_sums(int8: bool, tokens: int, drops: bool) -> None:
    x, gate_up, down = draw(tokens, D, seed=0), draw(E, 2 * F, D, seed=1), draw(E, D, F, seed=2)
    parts = [draw(*s, seed=3 + i) for i, s in enumerate([(E, R, D), (E, 2 * F, R), (E, R, F), (E, D, R)])]
    experts = draw(tokens, E, seed=8).argsort(-1)[:, :K]
    weights, kept = draw(tokens, K, seed=9).abs(), draw(tokens, K, seed=10) > -0.5 if drops else None
    held = (gate_up, down)
    if int8:
        held = tuple(Int8Matrices(*quantize_rows(one), torch.float64) for one in held)
    results = {}
    for backend in ("torch", "reference"):
        inputs = [one.clone().requires_grad_() for one in (x, weights, *parts)]
        out = swiglu_experts_low_rank(inputs[0], *held, LowRankExperts(*inputs[2:]), experts, inputs[1], kept, backend)
        (out * draw(tokens, D, seed=11)).sum().backward()
        results[backend] = [out, *(one.grad for one in inputs)]
    for found, wanted in zip(results["torch"], results["reference"], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)  # scales are float32


def test_what_does_not_fit_is_refused() -> None:
    parts = [draw(*s, seed=0) for s in [(E, R, D), (E, 2 * F, R), (E, R, F), (E, D, R + 1)]]
    plain = (draw(E, 2 * F, D, seed=0), draw(E, D, F, seed=0))
    with pytest.raises(ValueError, match=r"additions .* expected"):
        swiglu_experts_low_rank(
            draw(1, D, seed=0), *plain, LowRankExperts(*parts), torch.zeros(1, 1).long(), draw(1, 1, seed=0)
        )


@pytest.mark.parametrize("rows", [0, 1, 37])
def test_an_8_bit_product_has_the_gradient_of_its_floats(rows: int) -> None:
    weight, scale = quantize_rows(draw(70, 13, seed=1))
    x = draw(2, rows, 13, seed=0).requires_grad_()
    dy = draw(2, rows, 70, seed=2)
    (int8_linear(x, weight, scale) * dy).sum().backward()
    torch.testing.assert_close(x.grad, dy @ (weight * scale[:, None].double()), rtol=1e-7, atol=1e-7)
