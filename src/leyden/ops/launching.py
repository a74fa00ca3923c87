"""What the Triton bodies share on the host: tile arithmetic, precisions, and whether kernels are interpreted."""

from typing import Any

import torch
import triton.language as tl
from triton import knobs

_PRODUCTS = {
    torch.bfloat16: (tl.bfloat16, "ieee"),
    torch.float16: (tl.float32, "tf32"),
    torch.float32: (tl.float32, "ieee"),
}


def interpreted() -> bool:
    """Whether kernels run on the CPU, in Triton's interpreter (``TRITON_INTERPRET=1`` before they are imported)."""
    return knobs.runtime.interpret


def products(dtype: torch.dtype) -> tuple[Any, str]:
    """The dtype in which matrix products take tensors of ``dtype``, and ``tl.dot``'s input precision.

    Products of float16 may overflow it, so they are taken in float32, by tf32, which rounds as float16 does. The
    interpreter's bfloat16 products are wrong; there they are taken in float32 as well.
    """
    product, precision = _PRODUCTS[dtype]
    return (tl.float32 if interpreted() else product), precision


def power_of_two(count: int) -> int:
    """The least that is no smaller than ``count``."""
    return 1 << max(0, count - 1).bit_length()


def padded(dim: int) -> int:
    """The size of a tile that holds ``dim`` and can be multiplied: a power of two, at least 16."""
    return max(16, power_of_two(dim))


def blocks(count: int, size: int) -> int:
    """How many blocks of ``size`` hold ``count``."""
    return -(-count // size)


def last_dim_contiguous(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy where its last dim is strided: kernels take strides for all dims but that."""
    return x if x.stride(-1) == 1 else x.contiguous()
