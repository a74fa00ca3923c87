"""Paged attention in plain PyTorch: one sequence after the other, its pages gathered.

In one call for all, a sequence's bits would depend on how long the others are.
"""

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from leyden.ops.softmax_attention import softmax_attention

_GRAIN = 16
"""Matrix libraries take other ways, with other roundings, for few rows: a prompt's are a multiple of so many."""


def paged_attention_portable(
    q_BHD: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    softcap: float | None = None,
) -> torch.Tensor:
    """See :func:`leyden.ops.paged_attention`."""
    page, grouped = key_pages.shape[1], q_BHD.shape[1] != key_pages.shape[2]
    out = torch.zeros_like(q_BHD)
    for b, length in enumerate(lengths.tolist()):
        if length == 0:
            continue
        pages = block_table[b, : -(-length // page)]
        k, v = (x[pages].flatten(0, 1)[:length].transpose(0, 1) for x in (key_pages, value_pages))
        if softcap is None:
            out[b] = scaled_dot_product_attention(q_BHD[b, :, None], k, v, enable_gqa=grouped)[:, 0]
        else:
            out[b] = _capped(q_BHD[b].unflatten(0, (len(k), -1)), k, v, softcap).flatten(0, 1)
    return out


def _capped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softcap: float) -> torch.Tensor:
    """[Hkv, G, D] of queries [Hkv, G, D] that each see all keys [Hkv, S, D]; the products are in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.bmm(q.to(wide) * (q.shape[-1] ** -0.5 / softcap), k.to(wide).mT).tanh_().mul_(softcap)
    return torch.bmm(scores.softmax(-1), v.to(wide))


def paged_prompt_attention_portable(
    q_THD: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    pages: torch.Tensor,
    length: int,
    backend: str,
    softcap: float | None = None,
) -> torch.Tensor:
    """See :func:`leyden.ops.paged_prompt_attention`; ``backend`` is what :func:`softmax_attention` is called with."""
    rows = (0, 0, 0, 0, 0, -length % _GRAIN)
    q = pad(q_THD, rows)
    k, v = (pad(x[pages].flatten(0, 1)[:length], rows) for x in (key_pages, value_pages))
    return softmax_attention(q[None], k[None], v[None], backend=backend, softcap=softcap)[0, : len(q_THD)]
