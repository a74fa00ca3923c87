"""The logits whole, and the losses by their formulas."""

import torch
from torch.nn.functional import cross_entropy


def linear_cross_entropy_reference(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, z_loss: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.linear_cross_entropy`."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(dtype) @ weight.to(dtype).t()
    squares = torch.logsumexp(logits, dim=-1)[labels >= 0].square().sum()
    nll = cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return nll + z_loss * squares, nll.detach()
