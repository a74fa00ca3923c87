"""Cross-entropy as in ``portable.py``, with ``native.cpp`` turning each chunk of logits into its gradient in place."""

from typing import Any

import torch

from leyden.ops.native import call

_CHUNK_ELEMENTS = 8 << 20
"""Logits that exist at once: 16 MB in bfloat16."""


class NativeLinearCrossEntropy(torch.autograd.Function):
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
        (N, _), V = hidden.shape, weight.shape[0]
        rows, labels = max(1, _CHUNK_ELEMENTS // V), labels.contiguous()
        nll, z = hidden.new_empty(2, N, dtype=torch.float32)
        dhidden = torch.empty_like(hidden) if differentiate else None
        dweight = torch.zeros_like(weight, dtype=torch.float32) if differentiate else None
        buffer = hidden.new_empty(min(rows, N), V)
        for start in range(0, N, rows):
            chunk = slice(start, min(start + rows, N))
            part, count = hidden[chunk], chunk.stop - start
            logits = torch.mm(part, weight.t(), out=buffer[:count])
            given = (logits, labels[chunk], count, V, z_loss, differentiate)
            call("leyden_cross_entropy", logits.dtype, *given, nll[chunk], z[chunk])
            if dhidden is not None and dweight is not None:
                torch.mm(logits, weight, out=dhidden[chunk])  # the logits are their gradient by now
                dweight += torch.mm(logits.t(), part)
        if dhidden is not None and dweight is not None:
            ctx.save_for_backward(dhidden, dweight.to(weight.dtype))
        total = nll.sum()
        ctx.mark_non_differentiable(total)
        return total + z_loss * z.square().sum(), total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        scale = grads[0]
        if scale == 1:  # as a rule, and a pass over both is saved
            return dhidden, dweight, None, None, None
        return dhidden * scale.to(dhidden.dtype), dweight * scale.to(dweight.dtype), None, None, None
