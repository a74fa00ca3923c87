"""The decay slopes, against the numbers that the released formula gives."""

import pytest
import torch

from leyden.ops import lightning_slopes


def test_a_power_of_two() -> None:
    """8 heads: halves, times 1 - layer / (layers - 1) + 1e-5."""
    halves = torch.tensor([2.0**-n for n in range(1, 9)], dtype=torch.float64)
    for layer, factor in ((0, 1.00001), (1, 0.75001), (3, 0.25001), (4, 0.00001)):
        expected = (halves * factor).float()
        torch.testing.assert_close(lightning_slopes(8, layer, 5), expected, rtol=2e-7, atol=0)


def test_the_released_model() -> None:
    """64 heads, 80 layers: the first head of the first layer, and of the last."""
    first, last = lightning_slopes(64, 0, 80), lightning_slopes(64, 79, 80)
    assert first.shape == (64,)
    assert first.dtype == torch.float32
    assert first[0].item() == pytest.approx(0.9170040432 * 1.00001, rel=1e-6)
    assert first[63].item() == pytest.approx(2.0**-8 * 1.00001, rel=1e-6)
    assert last[0].item() == pytest.approx(0.9170040432e-5, rel=1e-6)


@pytest.mark.parametrize(
    ("num_heads", "exponents"),
    [
        (1, [-8]),
        (3, [-4, -8, -2]),
        (6, [-2, -4, -6, -8, -1, -3]),
        (12, [-1, -2, -3, -4, -5, -6, -7, -8, -0.5, -1.5, -2.5, -3.5]),
    ],
)
def test_other_numbers_of_heads_interpolate(num_heads: int, exponents: list[float]) -> None:
    expected = torch.tensor([2.0**e * 1.00001 for e in exponents], dtype=torch.float64).float()
    torch.testing.assert_close(lightning_slopes(num_heads, 0, 9), expected, rtol=2e-7, atol=0)


def test_a_model_of_one_layer() -> None:
    assert lightning_slopes(8, 0, 1)[0].item() == pytest.approx(0.5 * 1.00001, rel=1e-6)


@pytest.mark.parametrize("arguments", [(0, 0, 4), (8, 4, 4), (8, -1, 4)])
def test_what_does_not_exist_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="lightning_slopes"):
        lightning_slopes(*arguments)
