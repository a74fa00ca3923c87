"""Matrices of 8-bit integers with one float32 scale a row: made of floating ones, and given back a block at a time.

    w[f, d] = weight[f, d] * scale[f],    scale[f] = max_d |w[f, d]| / 127,    weight = round(w / scale)

symmetric and to the nearest (ties to even), so that an element is off by half a scale at most, the largest of a row by
nothing, and a row of zeros stays one. Integers up to 127 are exact in bfloat16 and float16.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from leyden.ops.backend import choose
from leyden.ops.choices import WIDENED_WEIGHTS
from leyden.ops.native import call

LARGEST = 127
"""The integers run from -127 to 127; -128 is not used."""

BLOCK_ELEMENTS = WIDENED_WEIGHTS.here


def quantize_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The integers and the scales of a matrix or of several.

    Args:
        matrix: [..., F, D], a floating dtype.

    Returns:
        [..., F, D] int8 and [..., F] float32.

    Raises:
        ValueError: an element is infinite or no number, so that its row has no scale.
    """
    rows = matrix.flatten(0, -2)
    weight = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    scale = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    for block in row_blocks(*rows.shape):
        wide = rows[block].to(torch.promote_types(rows.dtype, torch.float32))
        largest = wide.abs().amax(-1) if wide.shape[-1] else wide.new_zeros(len(wide))
        scale[block] = largest / LARGEST
        if not bool(scale[block].isfinite().all()):
            raise ValueError("a matrix with an element that is infinite or no number cannot be held in 8 bits.")
        divisor = torch.where(scale[block] > 0, scale[block], 1)  # of zeros, or of what is next to it
        weight[block] = (wide / divisor[:, None]).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return weight.view(matrix.shape), scale.view(matrix.shape[:-1])


def widen(weight: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, backend: str = "auto") -> torch.Tensor:
    """``out[f, d] = weight[f, d] * scale[f]``, formed in float32 and rounded to the dtype of ``out``.

    Args:
        weight: [F, D] int8.
        scale: [F] float32.
        out: [F, D], a floating dtype; overwritten and returned.
        backend: ``"auto"``, ``"torch"`` or ``"native"``.
    """
    if choose("int8_linear", backend, weight, scale, out, native=out.dtype) == "native":
        call("leyden_int8_widen", out.dtype, weight.contiguous(), scale.float().contiguous(), *weight.shape, out)
        return out
    wide = torch.promote_types(out.dtype, torch.float32)
    if weight.device.type != "cpu":  # where no cache has to hold a block, in one kernel
        return torch.mul(weight, scale.to(wide)[:, None], out=out)
    for block in row_blocks(*weight.shape):
        out[block] = weight[block].to(wide) * scale[block, None]
    return out


def row_blocks(num_rows: int, dim: int) -> Iterator[slice]:
    """All rows of a matrix, a block at a time; where it is cut depends on its shape and this machine's caches."""
    step = max(16, BLOCK_ELEMENTS // max(1, dim) // 16 * 16)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


@dataclass(frozen=True)
class Int8Matrices:
    """E matrices of one shape, of which one at a time is given out in float.

    Attributes:
        weight: [E, F, D] int8, contiguous.
        scale: [E, F] float32.
        dtype: in which a matrix is given out.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """(E, F, D)."""
        return self.weight.shape

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, index: int) -> torch.Tensor:
        """[F, D] in ``dtype``, memory of its own."""
        weight = self.weight[index]
        return widen(weight, self.scale[index], torch.empty(weight.shape, dtype=self.dtype, device=weight.device))

    def to_float(self) -> torch.Tensor:
        """[E, F, D], all of them, for the slow twin."""
        return self.weight.to(self.dtype) * self.scale.to(self.dtype)[..., None]
