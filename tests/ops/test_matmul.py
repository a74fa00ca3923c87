"""The product of two large matrices in C++ against float64: any sizes, and nothing read beside the matrices."""

import ctypes

import pytest
import torch
from exactness import examples
from hypothesis import given
from hypothesis import strategies as st

from leyden.ops import native

_LIBRARY = native.load()
_RUNS = not isinstance(_LIBRARY, native.UnavailableError) and _LIBRARY.leyden_matmul_pays(ctypes.c_int64(1))
pytestmark = pytest.mark.skipif(
    not _RUNS, reason="the processor does not multiply pairs of bfloat16, or has a unit for it"
)


def amid_nan(rows: int, columns: int, seed: int) -> torch.Tensor:
    """[rows, columns] bfloat16 without gaps, before and behind which every number is NaN."""
    memory = torch.full((rows * columns + 128,), torch.nan, dtype=torch.bfloat16)
    inner = memory[64 : 64 + rows * columns].view(rows, columns)
    inner.copy_(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)))
    return inner


def add(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> None:
    native.call("leyden_add_product", torch.bfloat16, a, b, len(a), a.shape[1], b.shape[1], y)


@given(
    depth=st.sampled_from([0, 1, 2, 3, 511, 512, 513, 1030]),
    rows=st.sampled_from([1, 5, 31, 33, 96, 97, 513, 700]),
    columns=st.sampled_from([1, 15, 17, 63, 65, 130, 257]),
)
@examples(25)
def test_it_adds_the_product(depth: int, rows: int, columns: int) -> None:
    a, b, y = amid_nan(depth, rows, 1), amid_nan(depth, columns, 2), torch.randn(rows, columns)
    around = torch.full((rows * columns + 64,), 7.0)
    inner = around[32 : 32 + rows * columns].view(rows, columns)
    inner.copy_(y)
    add(a, b, inner)
    torch.testing.assert_close(inner.double(), y.double() + a.double().t() @ b.double(), rtol=1e-5, atol=1e-4)
    assert (around[:32] == 7).all() and (around[-32:] == 7).all(), "nothing is written beside the result"


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    a, b, threads = amid_nan(600, 1100, 3), amid_nan(600, 300, 4), torch.get_num_threads()
    results = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(torch.zeros(1100, 300))
            add(a, b, results[-1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
