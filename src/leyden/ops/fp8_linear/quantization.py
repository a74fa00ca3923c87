"""Tiles of a matrix in 8-bit floats (E4M3), each with a scale of its own (DeepSeek-V3, arXiv 2412.19437, section 3.3).

A tile's largest magnitude becomes 448, the largest number of E4M3:

    scale = max |x| / 448,   q = round(x / scale)

The round is to the nearest, ties to even. A tile of zeros, or of numbers whose scale float32 does not have, gets the
smallest normal scale. A tile with a NaN or an infinity becomes NaN, so that a step with one is skipped as ever.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

TILE = 128
"""Numbers that share a scale along a sum's direction, and rows of a weight that do."""
E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""Of E4M3."""


@dataclass(frozen=True)
class Tiled:
    """A matrix [R, C] in tiles of ``rows`` x ``columns`` numbers; the last of a row or column may be smaller.

    Attributes:
        values: [R, C] E4M3.
        scales: [tiles of R, tiles of C] float32, or float64 for a float64 matrix.
        rows, columns: of a tile.
    """

    values: torch.Tensor
    scales: torch.Tensor
    rows: int
    columns: int

    def wide(self) -> torch.Tensor:
        """[R, C], the numbers that the tiles stand for, in the dtype of the scales."""
        R, C = self.values.shape
        scales = self.scales.repeat_interleave(self.rows, 0)[:R] if self.rows > 1 else self.scales
        scales = scales.repeat_interleave(self.columns, 1)[:, :C] if self.columns > 1 else scales
        return self.values.to(scales.dtype).mul_(scales)


def quantize_tiles(x: torch.Tensor, rows: int, columns: int) -> Tiled:
    """``x`` [R, C], of any floating dtype, in tiles of ``rows`` x ``columns``."""
    (R, C), wide = x.shape, torch.promote_types(x.dtype, torch.float32)
    whole = pad(x.to(wide), (0, -C % columns, 0, -R % rows))
    tiles = whole.view(whole.shape[0] // rows, rows, whole.shape[1] // columns, columns)
    scales = tiles.abs().amax(dim=(1, 3), keepdim=True).div_(LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
    values = (tiles / scales).view(whole.shape)[:R, :C].to(E4M3)
    return Tiled(values, scales[:, 0, :, 0], rows, columns)
