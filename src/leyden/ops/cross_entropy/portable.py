"""Cross-entropy in chunks of rows; the gradients of both factors are formed in the forward.

The loss is a sum, so its gradient is known up to one scalar while a chunk of logits is at hand: nothing of the size of
the logits is kept, and no product is computed twice.
"""

from typing import Any

import torch

_CHUNK_ELEMENTS = 4 << 20
"""Logits that exist at once: 16 MB in float32."""


class LinearCrossEntropy(torch.autograd.Function):
    """See :func:`leyden.ops.linear_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        z_loss: float,
        differentiate: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        rows = max(1, _CHUNK_ELEMENTS // weight.shape[0])
        nll, squares = hidden.new_zeros((), dtype=dtype), hidden.new_zeros((), dtype=dtype)
        dhidden = torch.empty_like(hidden) if differentiate else None
        dweight = torch.zeros_like(weight, dtype=dtype) if differentiate else None
        # Two buffers serve every chunk: memory that is mapped anew costs more than the arithmetic on it.
        narrow = hidden.new_empty(min(rows, hidden.shape[0]), weight.shape[0])
        wide = torch.empty_like(narrow, dtype=dtype)
        for start in range(0, hidden.shape[0], rows):
            part, label = hidden[start : start + rows], labels[start : start + rows]
            valid = (label >= 0).to(dtype)
            index = label.clamp_min(0)[:, None]
            raw = torch.mm(part, weight.t(), out=narrow[: part.shape[0]])
            logits = wide[: part.shape[0]].copy_(raw)
            target, top = logits.gather(1, index).squeeze(1), logits.amax(-1)
            p = torch.softmax(logits, -1, out=logits)
            z = top - p.amax(-1).log_()  # the largest probability is exp(top - z); the target's may underflow
            nll += ((z - target) * valid).sum()
            squares += (z.square() * valid).sum()
            if dhidden is None or dweight is None:
                continue
            # d nll / d logits = p - onehot;  d z^2 / d logits = 2 z p
            scale = valid if z_loss == 0 else valid * (1 + 2 * z_loss * z)
            dlogits = raw.copy_(_scaled(p, scale).scatter_add_(1, index, -valid[:, None]))
            torch.mm(dlogits, weight, out=dhidden[start : start + rows])
            dweight += torch.mm(dlogits.t(), part)
        if dhidden is not None and dweight is not None:
            ctx.save_for_backward(dhidden, dweight.to(weight.dtype))
        ctx.mark_non_differentiable(nll)
        return nll + z_loss * squares, nll

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        scale = grads[0]
        return dhidden * scale.to(dhidden.dtype), dweight * scale.to(dweight.dtype), None, None, None


def _scaled(p: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``p`` with each row times its scale, in place; nothing is read where every scale is 1."""
    return p if bool((scale == 1).all()) else p.mul_(scale[:, None])
