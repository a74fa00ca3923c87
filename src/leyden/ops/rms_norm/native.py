"""The norms in C++: ``native.cpp``, one pass over the rows in each direction. Saved are the inputs and 1/rms a row."""

from typing import Any

import torch

from leyden.ops.native import call


class NativeRMSNorm(torch.autograd.Function):
    """See :func:`leyden.ops.rms_norm`, and :func:`leyden.ops.gated_rms_norm` where there is a gate."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x, gate, weight = x.contiguous(), None if gate is None else gate.contiguous(), weight.contiguous()
        y, rstd = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        call("leyden_rms_norm", x.dtype, x, gate, weight, eps, rstd.numel(), x.shape[-1], y, rstd)
        ctx.save_for_backward(x, gate, weight, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate, weight, rstd = ctx.saved_tensors
        dy, dx, dweight = grads[0].contiguous(), torch.empty_like(x), torch.empty_like(weight)
        dgate = None if gate is None else torch.empty_like(gate)
        rows = (rstd.numel(), x.shape[-1])
        call("leyden_rms_norm_backward", x.dtype, dy, x, gate, weight, rstd, *rows, dx, dgate, dweight)
        return dx, dgate, dweight, None
