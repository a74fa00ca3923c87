"""Random calls of every public op against float64 (``fuzz.py``): few here, many in ``make test-all``."""

import fuzz
import pytest

from leyden.ops import native

pytestmark = pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler here")


@pytest.mark.parametrize("op", fuzz.OPS)
def test_random_calls(op: str) -> None:
    for seed in range(20):
        fuzz.check(op, seed)
        fuzz.try_what_is_not_finite(op, seed)


@pytest.mark.slow
@pytest.mark.parametrize("op", fuzz.OPS)
def test_many_random_calls(op: str) -> None:
    for seed in range(100, 1100):
        fuzz.check(op, seed)
        fuzz.try_what_is_not_finite(op, seed)
