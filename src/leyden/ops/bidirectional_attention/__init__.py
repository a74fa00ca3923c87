"""Softmax attention in which every position of a document sees all of it: that of a vision tower over its tiles."""

import torch

from leyden.ops.backend import choose
from leyden.ops.bidirectional_attention.portable import bidirectional_attention_portable
from leyden.ops.bidirectional_attention.reference import bidirectional_attention_reference
from leyden.ops.checks import check_bounds, check_floating

__all__ = ["bidirectional_attention"]


def bidirectional_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, backend: str = "auto"
) -> torch.Tensor:
    """``softmax(q k^T / sqrt(D)) v`` over all keys of each query's own document.

    Args:
        q, k, v: [T, H, D], any floating dtype (all three the same): the documents, one behind another.
        cu_seqlens: [N+1] integers from 0 to T, where each document begins, and the end; on the CPU, or read from the
            device once. A document may be empty.
        backend: ``"auto"``, ``"reference"`` or ``"torch"``.

    Returns:
        [T, H, D] in the dtype of q; differentiable.

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot run.
    """
    if q.ndim != 3 or not q.shape == k.shape == v.shape:
        raise ValueError(
            f"bidirectional_attention: q, k and v [T, H, D] of one shape expected; given {tuple(q.shape)}, "
            f"{tuple(k.shape)} and {tuple(v.shape)}."
        )
    check_bounds("bidirectional_attention", cu_seqlens, q.shape[0])
    check_floating("bidirectional_attention", q=q, k=k, v=v)
    bounds = cu_seqlens.tolist()
    if choose("bidirectional_attention", backend, q, k, v) == "reference":
        return bidirectional_attention_reference(q, k, v, bounds)
    return bidirectional_attention_portable(q, k, v, bounds)
