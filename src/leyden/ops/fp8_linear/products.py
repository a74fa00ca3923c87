"""The product of two matrices in 8-bit tiles: by the tensor cores of Hopper where they take it, else emulated.

Emulated, both are widened to float32 and multiplied there, which differs from sums of exact products in the order of a
float32 sum alone. The tensor cores multiply the bytes, a tile of 128 terms at a time, and add up tiles in float32.
"""

import functools
import logging
from typing import Any

import torch
from torch.nn import functional

from leyden.ops.fp8_linear.quantization import TILE, Tiled, quantize_tiles


def product(a: Tiled, b: Tiled, dtype: torch.dtype) -> torch.Tensor:
    """``a b^T`` in ``dtype``, [M, N] of [M, K] and [N, K], both in tiles of 128 along K."""
    if a.values.is_cuda and _fits(a, b) and _has_tensor_cores(a.values.device.index or 0):
        return _on_tensor_cores(a, b, dtype)
    return torch.mm(a.wide(), b.wide().t()).to(dtype)


def _fits(a: Tiled, b: Tiled) -> bool:
    """Whether ``torch.nn.functional.scaled_mm`` takes these: whole tiles, and rows of N that are whole too."""
    return not (a.values.shape[1] % TILE or b.values.shape[0] % TILE or a.values.numel() == 0)


def _on_tensor_cores(a: Tiled, b: Tiled, dtype: torch.dtype) -> torch.Tensor:
    """By ``torch.nn.functional.scaled_mm``. Scales of tiles of one row lie with the rows together, as it asks."""
    versioned: Any = functional  # older ones have no scaled_mm
    kinds = versioned.ScalingType
    recipes = [kinds.BlockWise1x128 if tiles.rows == 1 else kinds.BlockWise128x128 for tiles in (a, b)]
    scales = [tiles.scales.t().contiguous().t() if tiles.rows == 1 else tiles.scales.contiguous() for tiles in (a, b)]
    values_a, values_b = a.values.contiguous(), b.values.contiguous()
    narrow = dtype if dtype in (torch.bfloat16, torch.float32) else torch.float32
    out = versioned.scaled_mm(values_a, values_b.t(), scales[0], recipes[0], scales[1], recipes[1], output_dtype=narrow)
    return out.to(dtype)


@functools.cache
def _has_tensor_cores(device: int) -> bool:
    """Whether this GPU is a Hopper whose ``scaled_mm`` gives what the emulation does, on one product of each kind.

    Nobody has measured it: so it is tried, and what it refuses or gets wrong is emulated, which the log says once.
    """
    if torch.cuda.get_device_capability(device) != (9, 0):
        return False
    draw = torch.Generator(f"cuda:{device}").manual_seed(0)
    x, w = (torch.randn(n, 2 * TILE, generator=draw, device=f"cuda:{device}") for n in (3 * TILE, 2 * TILE))
    rows = quantize_tiles(x, 1, TILE)
    for other in (quantize_tiles(w, TILE, TILE), quantize_tiles(w, 1, TILE)):
        exact = torch.mm(rows.wide(), other.wide().t())
        try:
            found = _on_tensor_cores(rows, other, torch.float32)
        except (RuntimeError, NotImplementedError, TypeError, AttributeError, ValueError) as reason:
            _log(f"8-bit products are emulated, since scaled_mm refuses them: {str(reason).splitlines()[0]}")
            return False
        if (found - exact).abs().max() > 1e-3 * exact.abs().max():
            _log("8-bit products are emulated, since scaled_mm gives other numbers than their formula")
            return False
    return True


def _log(message: str) -> None:
    logging.getLogger(__name__).warning(message)
