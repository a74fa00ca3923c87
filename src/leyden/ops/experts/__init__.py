"""A layer of SwiGLU experts, each applied to the tokens routed to it."""

import torch

from leyden.ops.backend import choose
from leyden.ops.experts.grouped import stays_on_device
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
        backend: ``"auto"``, ``"reference"``, ``"torch"``, ``"native"`` or ``"triton"``. ``"auto"`` takes the last where
            grouped products stay on the GPU (``grouped.py``).

    Returns:
        [N, D] in the dtype of x.

    Raises:
        ValueError: a backend that cannot run here or, ``"triton"``, does not take these shapes.
    """
    triton = x.dtype if backend != "auto" or stays_on_device(x, down) else None
    chosen = choose("swiglu_experts", backend, x.device, triton=triton, native=x.dtype)
    if chosen == "reference":
        return swiglu_experts_reference(x, gate_up, down, experts, weights, kept)
    if chosen == "native":
        return NativeExperts.apply(x, gate_up, down, experts, weights.float(), kept)
    if chosen == "triton" and len(x):  # without tokens there is nothing to launch
        from leyden.ops.experts.launch import swiglu_experts_triton  # triton, where it is used

        return swiglu_experts_triton(x, gate_up, down, experts, weights, kept)
    return swiglu_experts_portable(x, gate_up, down, experts, weights, kept)
