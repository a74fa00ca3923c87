"""Sizes and dtypes that the experts' kernels are tried in, with whole weights and with weights in 8 bits."""

from collections.abc import Sequence

import pytest
import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

Size = tuple[int, int, int, int]
"""Tokens, experts, experts a token and their capacity."""


def in_dtypes(in_all: Size, others: Sequence[Size]) -> list[object]:
    """Parameters (size, dtype): one size in all dtypes; the others in bfloat16, and slowly in the rest."""
    found: list[object] = []
    for size in (in_all, *others):
        for dtype in DTYPES:
            fast = size == in_all or dtype == torch.bfloat16
            found.append(pytest.param(size, dtype, marks=() if fast else pytest.mark.slow))
    return found
