"""The choice of experts in C++: ``native.cpp``, in float32."""

from typing import Any

import torch

from leyden.ops.native import call


class NativeRoute(torch.autograd.Function):
    """From logits [N, E] to the experts, weights and probabilities of :class:`leyden.ops.Routing`."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, ...]:
        logits = logits.contiguous()
        probabilities, weights = torch.empty_like(logits), logits.new_empty(len(logits), top_k)
        experts = logits.new_empty(len(logits), top_k, dtype=torch.int64)
        call("leyden_route", logits, *logits.shape, top_k, probabilities, weights, experts)
        ctx.save_for_backward(experts, weights, probabilities)
        ctx.mark_non_differentiable(experts)
        ctx.set_materialize_grads(False)
        return experts, weights, probabilities

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        experts, weights, probabilities = ctx.saved_tensors
        dweights, dprobabilities = (None if g is None else g.contiguous() for g in grads[1:])
        dlogits = torch.empty_like(probabilities)
        given = (probabilities, weights, experts, dweights, dprobabilities)
        call("leyden_route_backward", *given, *probabilities.shape, experts.shape[1], dlogits)
        return dlogits, None
