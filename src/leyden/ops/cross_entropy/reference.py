"""The logits whole, and the losses of each token by their formulas."""

import torch
from torch.nn.functional import cross_entropy


def linear_token_nll_reference(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, softcap: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.linear_token_nll`."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(dtype) @ weight.to(dtype).t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    nll = cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    return nll, torch.logsumexp(logits, dim=-1).where(labels >= 0, 0)
