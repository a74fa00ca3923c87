"""Attention among all positions of a document against its formula in float64, and what it refuses."""

import itertools
import math

import pytest
import torch
from exactness import assert_all_within_noise, examples, random
from hypothesis import given
from hypothesis import strategies as st

from leyden.ops import bidirectional_attention

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def draw(length: int, heads: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [random(length, heads, dim, dtype=dtype, seed=seed) for seed in range(3)]


def by_mask(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: list[int]) -> torch.Tensor:
    """The whole row at once behind a mask, in the dtype of the inputs."""
    number = torch.bucketize(torch.arange(len(q)), torch.tensor(bounds[1:]), right=True)
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(number[:, None] != number, -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 7, 7, 20]), min_size=1, max_size=6).filter(lambda drawn: sum(drawn) > 8),
    heads=st.integers(1, 3),
    dim=st.sampled_from([1, 5, 8]),
)
@examples(8)
def test_documents_alone(dtype: torch.dtype, lengths: list[int], heads: int, dim: int) -> None:
    bounds = [0, *itertools.accumulate(lengths)]
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    assert_all_within_noise(
        lambda *x: [bidirectional_attention(*x, cu_seqlens)],
        lambda *x: [by_mask(*x, bounds)],
        lambda *x: [bidirectional_attention(*x, cu_seqlens, backend="reference")],
        draw(bounds[-1], heads, dim, dtype),
    )


def test_the_reference_is_the_formula() -> None:
    inputs, bounds = draw(19, 2, 5, torch.float64), [0, 4, 4, 11, 19]
    found = bidirectional_attention(*inputs, torch.tensor(bounds), backend="reference")
    torch.testing.assert_close(found, by_mask(*inputs, bounds), rtol=1e-12, atol=1e-13)


def test_no_positions() -> None:
    inputs = [x.requires_grad_() for x in draw(0, 2, 4, torch.float32)]
    out = bidirectional_attention(*inputs, torch.tensor([0, 0]))
    out.sum().backward()
    assert out.shape == (0, 2, 4) and inputs[0].grad is not None


def test_views_as_a_projection_gives_them() -> None:
    row = random(14, 3 * 2 * 4, dtype=torch.float64, seed=0)
    q, k, v = (x.unflatten(-1, (2, 4)) for x in row.chunk(3, dim=-1))
    bounds = torch.tensor([0, 7, 14])
    plain = bidirectional_attention(q.contiguous(), k.contiguous(), v.contiguous(), bounds)
    assert torch.equal(bidirectional_attention(q, k, v, bounds), plain)


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = draw(6, 2, 4, torch.float32)
    with pytest.raises(ValueError, match="one shape expected"):
        bidirectional_attention(q, k[:5], v[:5], torch.tensor([0, 6]))
    with pytest.raises(ValueError, match="rise from 0 to T = 6"):
        bidirectional_attention(q, k, v, torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="one dtype"):
        bidirectional_attention(q, k.double(), v, torch.tensor([0, 6]))
    with pytest.raises(ValueError, match="has no Triton body"):
        bidirectional_attention(q, k, v, torch.tensor([0, 6]), backend="triton")
