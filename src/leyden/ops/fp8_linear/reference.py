"""Products of 8-bit tiles by their formula, tile by tile, summed in float64; the rounding to E4M3 is spelled out.

Scales and quotients are float32 (float64 for float64), as in every body: a quotient in the middle of two numbers of
E4M3 would else be rounded by the precision in which it was computed.
"""

import torch

_TILE = 128
_LARGEST = 448.0


def fp8_linear_reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product that :func:`leyden.ops.fp8_linear` gives for x [T, K] and weight [N, K], [T, N] in float64."""
    return tiles_of(x, 1, _TILE).double() @ tiles_of(weight, _TILE, _TILE).double().T


def fp8_linear_backward_reference(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Its gradients in x and weight under ``dy`` [T, N], in float64."""
    dx = tiles_of(dy, 1, _TILE).double() @ tiles_of(weight, _TILE, _TILE).double()
    return dx, tiles_of(dy, _TILE, 1).double().T @ tiles_of(tiles_of(x, 1, _TILE), _TILE, 1).double()


def tiles_of(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """What is left of ``x`` [R, C] once each tile of ``rows`` x ``columns`` has 8 bits a number; float32 or float64."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    out, tiny = torch.empty_like(x), torch.finfo(torch.float32).tiny
    for top in range(0, x.shape[0], rows):
        for left in range(0, x.shape[1], columns):
            tile = x[top : top + rows, left : left + columns]
            scale = (tile.abs().max() / _LARGEST).clamp(min=tiny)
            out[top : top + rows, left : left + columns] = _e4m3((tile / scale).double()).to(x.dtype) * scale
    return out


def _e4m3(x: torch.Tensor) -> torch.Tensor:
    """The nearest numbers with three bits behind the leading one, of exponents from -6 on, in float64; ties to even."""
    exponent = torch.floor(torch.log2(x.abs().clamp(min=2.0**-6)))
    unit = torch.exp2(exponent - 3)
    return torch.round(x / unit) * unit  # torch rounds ties to even
