"""Attention among all positions of a document by PyTorch's fused kernel, on every device.

Tiles of pictures have one length, or few: neighbours of the same length are one batch, without padding and without a
copy.
"""

import itertools

import torch
from torch.nn.functional import scaled_dot_product_attention


def bidirectional_attention_portable(
    q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, bounds: list[int]
) -> torch.Tensor:
    """See :func:`leyden.ops.bidirectional_attention`."""
    outputs = [_batch(q_THD[at], k_THD[at], v_THD[at], length) for length, at in _batches(bounds)]
    if not outputs:
        return q_THD + k_THD + v_THD  # of no positions, and still differentiable
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _batches(bounds: list[int]) -> list[tuple[int, slice]]:
    """The length of neighbouring documents that are equally long, and where they lie."""
    spans = [(stop - start, start, stop) for start, stop in itertools.pairwise(bounds) if stop > start]
    groups = (list(group) for _, group in itertools.groupby(spans, key=lambda span: span[0]))
    return [(group[0][0], slice(group[0][1], group[-1][2])) for group in groups]


def _batch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: int) -> torch.Tensor:
    """[n * length, H, D] each."""
    q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
