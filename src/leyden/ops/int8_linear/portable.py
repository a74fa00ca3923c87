"""Products with weights in 8 bits: a block of the weight's rows becomes floats, is multiplied, and is forgotten.

What is multiplied is the weight rounded to the dtype of x. A block is cut by the weight's shape alone, and the matrix
library gives a row of x the same bits whatever other rows there are where their number is a multiple of 16; so does
this.
"""

import torch

from leyden.ops.int8_linear.quantization import row_blocks, widen


def int8_linear_portable(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, backend: str) -> torch.Tensor:
    """See :func:`leyden.ops.int8_linear`.

    Args:
        x: [N, D].
        weight: [F, D].
        scale: [F].
        backend: what makes the floats: ``"torch"`` or ``"native"``.
    """
    out = x.new_empty(len(x), len(weight))
    # Off the CPU there is no cache that a block has to fit, and every block is launches.
    blocks = list(row_blocks(*weight.shape)) if x.device.type == "cpu" else [slice(0, len(weight))]
    buffer = x.new_empty(blocks[0].stop if blocks else 0, x.shape[1])
    for block in blocks:
        matrix = widen(weight[block], scale[block], buffer[: block.stop - block.start], backend)
        torch.mm(x, matrix.t(), out=out[:, block])
    return out
