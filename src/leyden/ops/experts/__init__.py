"""A layer of SwiGLU experts, each applied to the tokens routed to it."""

import torch

from leyden.ops.backend import choose
from leyden.ops.experts.native import NativeExperts
from leyden.ops.experts.portable import swiglu_experts_portable
from leyden.ops.experts.reference import swiglu_experts_reference

__all__ = ["swiglu_experts"]


def swiglu_experts(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """``sum_j weights[n, j] * down_e (silu(gate_e x_n) * (up_e x_n))`` with ``e = experts[n, j]``.

    Args:
        x: [N, D].
        gate_up: [E, 2F, D], the gate's rows before the up-projection's; dtype of x.
        down: [E, D, F]; dtype of x.
        experts: [N, k] int64.
        weights: [N, k] float32.
        kept: [N, k] bool; an assignment that is False costs nothing and adds nothing. All are kept where None.
        backend: ``"auto"``, ``"reference"``, ``"torch"`` or ``"native"``.

    Returns:
        [N, D] in the dtype of x.
    """
    chosen = choose("swiglu_experts", backend, x.device, native=x.dtype)
    if chosen == "reference":
        return swiglu_experts_reference(x, gate_up, down, experts, weights, kept)
    if chosen == "native":
        return NativeExperts.apply(x, gate_up, down, experts, weights.float(), kept)
    return swiglu_experts_portable(x, gate_up, down, experts, weights, kept)
