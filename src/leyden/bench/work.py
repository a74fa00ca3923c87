"""The inputs that both sides of a benchmark are given."""

from dataclasses import dataclass

import numpy as np
import torch

from leyden.core.device import narrow_products_are_slow

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHORT = {"float32": "f32", "bfloat16": "bf16"}
_TOLERANCE = 1e-4
"""Largest difference allowed between both sides' float32 logits, as a share of the largest logit."""


def bench_dtype() -> str:
    """bfloat16, or float32 where the processor has no arithmetic for it."""
    return "float32" if narrow_products_are_slow(torch.device("cpu")) else "bfloat16"


def compare_logits(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Both sides' float32 logits of the same tokens: their largest difference, as a share of the largest logit.

    Raises:
        RuntimeError: it is above the tolerance, so that no figure would mean anything.
    """
    difference = float(np.abs(expected - found).max() / np.abs(expected).max())
    if not difference <= _TOLERANCE:
        raise RuntimeError(
            f"both sides must compute the same before their speeds are compared; their logits differ by "
            f"{difference:.1e} of the largest, and {_TOLERANCE:.0e} is allowed"
        )
    return {"largest_logit_difference": difference, "tolerance": _TOLERANCE}


@dataclass(frozen=True)
class AttentionShape:
    """One attention call: ``heads`` of ``head_dim`` over ``tokens``."""

    tokens: int
    heads: int
    head_dim: int


def random_tokens(batch: int, length: int, vocab_size: int) -> torch.Tensor:
    """[batch, length] int64, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (batch, length), generator=generator)


def attention_inputs(shape: AttentionShape, dtype: str) -> list[torch.Tensor]:
    """q, k, v and the output's gradient: [1, T, H, D], the same at every call."""
    generator = torch.Generator().manual_seed(0)
    size = (1, shape.tokens, shape.heads, shape.head_dim)
    return [torch.randn(size, generator=generator).to(DTYPES[dtype]) for _ in range(4)]
