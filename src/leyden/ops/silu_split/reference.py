"""SiLU and split by their formulas."""

import torch


def silu_split_reference(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.silu_split`."""
    wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    q, k, v = (wide * torch.sigmoid(wide)).to(qkv.dtype).unflatten(-1, (3, -1)).unbind(-2)
    return q, k, v
