"""The losses of tokens in PyTorch, on any device: chunks of rows, so that logits never exist whole."""

import torch

from leyden.ops.cross_entropy.autograd import TokenLosses, Upstream

_CHUNK_ELEMENTS = 4 << 20
"""Logits that exist at once: 16 MiB in float32."""


def token_nll(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    upstream: Upstream | None,
    *,
    softcap: float | None = None,
) -> TokenLosses:
    """See :class:`leyden.ops.cross_entropy.autograd.Body`; ``softcap`` as of :func:`leyden.ops.linear_token_nll`."""
    (N, _), V = hidden.shape, weight.shape[0]
    dtype, step = torch.promote_types(hidden.dtype, torch.float32), max(1, _CHUNK_ELEMENTS // V)
    nll, log_z = hidden.new_zeros(2, N, dtype=dtype).unbind()
    dhidden = None if upstream is None else torch.empty_like(hidden)
    dweight = None if upstream is None else torch.zeros_like(weight, dtype=dtype)
    # Two buffers serve every chunk: memory that is mapped anew costs more than the arithmetic on it.
    narrow = hidden.new_empty(min(step, N), V)
    wide = torch.empty_like(narrow, dtype=dtype)
    for start in range(0, N, step):
        rows = slice(start, min(start + step, N))
        valid, index = labels[rows] >= 0, labels[rows].clamp_min(0)[:, None]
        raw = torch.mm(hidden[rows], weight.t(), out=narrow[: rows.stop - start])
        logits = wide[: rows.stop - start].copy_(raw)
        slope = None if softcap is None else cap_logits(logits, softcap, slope=upstream is not None)
        target, top = logits.gather(1, index).squeeze(1), logits.amax(-1)
        p = torch.softmax(logits, -1, out=logits)
        z = top - p.amax(-1).log_()  # the largest probability is exp(top - z); the target's may underflow
        nll[rows], log_z[rows] = (z - target).where(valid, 0), z.where(valid, 0)
        if upstream is None or dhidden is None or dweight is None:
            continue
        of_p, of_label = upstream.factors(rows, z, valid)
        wide_gradient = _scaled(p, of_p).scatter_add_(1, index, -of_label[:, None])
        dlogits = raw.copy_(wide_gradient if slope is None else wide_gradient.mul_(slope))
        torch.mm(dlogits, weight, out=dhidden[rows])
        dweight += torch.mm(dlogits.t(), hidden[rows])
    return TokenLosses(nll, log_z, dhidden, None if dweight is None else dweight.to(weight.dtype))


def cap_logits(logits: torch.Tensor, softcap: float, *, slope: bool) -> torch.Tensor | None:
    """``logits`` become ``softcap tanh(logits / softcap)``, in place; the derivative of that, where ``slope``."""
    tanh = logits.div_(softcap).tanh_()
    found = tanh.square().neg_().add_(1) if slope else None
    logits.mul_(softcap)
    return found


def _scaled(p: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``p`` with each row times its scale, in place; nothing is read where every scale is 1."""
    return p if bool((scale == 1).all()) else p.mul_(scale[:, None])
