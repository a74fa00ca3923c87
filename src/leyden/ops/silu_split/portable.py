"""SiLU and split in PyTorch: one pass over the whole, and views of it."""

import torch
from torch.nn.functional import silu


def silu_split_portable(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.silu_split`."""
    q, k, v = silu(qkv).chunk(3, dim=-1)
    return q, k, v
