"""Weights in 8 bits by their formula, held whole in float: the slow twin."""

import torch


def int8_linear_reference(x_ND: torch.Tensor, weight_FD: torch.Tensor, scale_F: torch.Tensor) -> torch.Tensor:
    """See :func:`leyden.ops.int8_linear`."""
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    matrix = weight_FD.to(dtype) * scale_F.to(dtype)[:, None]
    return (x_ND.to(dtype) @ matrix.t()).to(x_ND.dtype)
