"""The losses of tokens in C++: ``native.cpp`` turns each chunk of logits into its gradient in place."""

import ctypes

import torch

from leyden.ops.cross_entropy.autograd import TokenLosses, Upstream
from leyden.ops.native import call, library

_CHUNK_ELEMENTS = 8 << 20
"""Logits that exist at once: 16 MiB in bfloat16."""


def token_nll(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, upstream: Upstream | None
) -> TokenLosses:
    """See :class:`leyden.ops.cross_entropy.autograd.Body`."""
    (N, D), V, hidden = hidden.shape, weight.shape[0], hidden.contiguous()
    own = library().leyden_matmul_pays(ctypes.c_int64(hidden.dtype == torch.bfloat16))
    step, labels = max(1, _CHUNK_ELEMENTS // V), labels.contiguous()
    nll, log_z = hidden.new_empty(2, N, dtype=torch.float32).unbind()
    dnll, dlog_z = (None if x is None else x.contiguous() for x in (upstream or Upstream())[:2])
    dhidden = None if upstream is None else torch.empty_like(hidden)
    dweight = None if upstream is None else hidden.new_zeros(V, D, dtype=torch.float32)
    buffer = hidden.new_empty(min(step, N), V)
    for start in range(0, N, step):
        rows = slice(start, min(start + step, N))
        count = rows.stop - start
        logits = torch.mm(hidden[rows], weight.t(), out=buffer[:count])
        given = [None if x is None else x[rows] for x in (dnll, dlog_z)]
        z_loss, differentiate = (upstream or Upstream()).z_loss, upstream is not None
        call(
            "leyden_token_nll", logits.dtype, logits, labels[rows], *given, count, V, z_loss, differentiate,
            nll[rows], log_z[rows],
        )  # fmt: skip
        if dhidden is not None and dweight is not None:
            torch.mm(logits, weight, out=dhidden[rows])  # the logits are their gradient by now
            if own:
                call("leyden_add_product", logits.dtype, logits, hidden[rows], count, V, D, dweight)
            else:
                dweight += torch.mm(logits.t(), hidden[rows])
    return TokenLosses(nll, log_z, dhidden, None if dweight is None else dweight.to(weight.dtype))
