"""Attention among all positions of a document by its formula, a document at a time, in float32 or float64."""

import itertools
import math

import torch


def bidirectional_attention_reference(
    q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, bounds: list[int]
) -> torch.Tensor:
    """See :func:`leyden.ops.bidirectional_attention`."""
    wide = torch.promote_types(q_THD.dtype, torch.float32)
    outputs = []
    for start, stop in itertools.pairwise(bounds):
        q, k, v = (x[start:stop].to(wide) for x in (q_THD, k_THD, v_THD))
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
        outputs.append(torch.einsum("hts,shd->thd", scores.softmax(-1), v))
    return torch.cat(outputs).to(q_THD.dtype)
