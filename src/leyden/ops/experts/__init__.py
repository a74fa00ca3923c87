"""A layer of SwiGLU experts, each applied to the tokens routed to it."""

import torch

from leyden.ops.backend import choose
from leyden.ops.checks import check_floating, check_indices
from leyden.ops.experts.fp8 import swiglu_experts_fp8_portable
from leyden.ops.experts.grouped import stays_on_device
from leyden.ops.experts.low_rank import LowRankExperts, swiglu_experts_low_rank
from leyden.ops.experts.native import NativeExperts
from leyden.ops.experts.portable import swiglu_experts_portable
from leyden.ops.experts.reference import swiglu_experts_reference
from leyden.ops.gradients import backward_may_follow
from leyden.ops.int8_linear import Int8Matrices

__all__ = ["LowRankExperts", "swiglu_experts", "swiglu_experts_fp8", "swiglu_experts_low_rank"]


def swiglu_experts(
    x: torch.Tensor,
    gate_up: torch.Tensor | Int8Matrices,
    down: torch.Tensor | Int8Matrices,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """``sum_j weights[n, j] * down_e (silu(gate_e x_n) * (up_e x_n))`` with ``e = experts[n, j]``.

    Args:
        x: [N, D].
        gate_up: [E, 2F, D], the gate's rows before the up-projection's; dtype of x.
        down: [E, D, F]; dtype of x. Both may be held in 8 bits: of those, one expert at a time becomes floats, there
            are no gradients; Triton widens both in registers, or takes neither.
        experts: [N, k] int64.
        weights: [N, k] float32.
        kept: [N, k] bool; an assignment that is False costs nothing and adds nothing. All are kept where None.
        backend: ``"auto"``, ``"reference"``, ``"torch"``, ``"native"`` or ``"triton"``. ``"auto"`` takes the last where
            grouped products stay on the GPU (``grouped.py``).

    Returns:
        [N, D] in the dtype of x.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, an expert that is none of the E (on a GPU it is
            not looked for), or a backend that cannot run here or, ``"triton"``, does not take these shapes.
    """
    _check(x, gate_up, down, experts, weights, kept)
    experts = experts.long()
    if isinstance(gate_up, Int8Matrices) or isinstance(down, Int8Matrices):
        return _in_8_bits(x, gate_up, down, experts, weights, kept, backend)
    triton = x.dtype if backend != "auto" or stays_on_device(x, down) else None
    chosen = choose("swiglu_experts", backend, x, gate_up, down, experts, weights, kept, triton=triton, native=x.dtype)
    if chosen == "reference":
        return swiglu_experts_reference(x, gate_up, down, experts, weights, kept)
    if chosen == "native":
        keep = backward_may_follow(x, gate_up, down, weights)
        return NativeExperts.apply(x, gate_up, down, experts, weights.float(), kept, keep)
    if chosen == "triton" and len(x):  # without tokens there is nothing to launch
        from leyden.ops.experts.launch import swiglu_experts_triton  # triton, where it is used

        return swiglu_experts_triton(x, gate_up, down, experts, weights, kept)
    return swiglu_experts_portable(x, gate_up, down, experts, weights, kept)


def swiglu_experts_fp8(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`swiglu_experts` whose products, forward and backward, are those of :func:`leyden.ops.fp8_linear`.

    The gradient of an expert's weights has tiles of 128 of its tokens, in the order of the tokens.

    Args:
        x, gate_up, down, experts, weights, kept: as of :func:`swiglu_experts`, and no weights in 8 bits.

    Raises:
        ValueError: as of :func:`swiglu_experts`.
    """
    _check(x, gate_up, down, experts, weights, kept)
    return swiglu_experts_fp8_portable(x, gate_up, down, experts.long(), weights, kept)


def _check(
    x: torch.Tensor,
    gate_up: torch.Tensor | Int8Matrices,
    down: torch.Tensor | Int8Matrices,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None,
) -> None:
    fit = x.ndim == experts.ndim == 2 and len(gate_up.shape) == len(down.shape) == 3
    if fit:
        E, D, F = down.shape
        fit = gate_up.shape == (E, 2 * F, D) and E > 0 and x.shape[1] == D and experts.shape[1] > 0
    chosen = [experts.shape, weights.shape, *([] if kept is None else [kept.shape])]
    if not fit or len({*chosen}) > 1 or len(experts) != len(x):
        given = ", ".join(str(tuple(shape)) for shape in (x.shape, gate_up.shape, down.shape, *chosen))
        raise ValueError(
            "swiglu_experts: x [N, D], gate_up [E, 2F, D], down [E, D, F], and experts, weights and kept [N, k] "
            f"expected; given {given}."
        )
    floating = {"gate_up": gate_up, "down": down}
    floating = {name: part for name, part in floating.items() if isinstance(part, torch.Tensor)}
    check_floating("swiglu_experts", x=x, **floating)
    check_floating("swiglu_experts", weights=weights)
    if kept is not None and kept.dtype != torch.bool:
        raise ValueError(f"swiglu_experts: kept in bool expected; given {kept.dtype}.")
    check_indices("swiglu_experts", "experts", experts, len(gate_up))


def _in_8_bits(
    x: torch.Tensor,
    gate_up: torch.Tensor | Int8Matrices,
    down: torch.Tensor | Int8Matrices,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None,
    backend: str,
) -> torch.Tensor:
    """Triton's, or those that take one expert after another and ask of a stack no more than its matrices."""
    if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad):
        raise ValueError(
            "swiglu_experts: experts in 8 bits have no gradient; train additions to them (swiglu_experts_low_rank)."
        )
    held = [part.weight if isinstance(part, Int8Matrices) else part for part in (gate_up, down)]
    both = isinstance(gate_up, Int8Matrices) and isinstance(down, Int8Matrices)
    dtypes = {"triton": x.dtype if both else None, "native": x.dtype}
    chosen = choose("swiglu_experts in 8 bits", backend, x, *held, experts, weights, kept, **dtypes)
    if chosen == "reference":
        gate_up, down = (part.to_float() if isinstance(part, Int8Matrices) else part for part in (gate_up, down))
        return swiglu_experts_reference(x, gate_up, down, experts, weights, kept)
    if chosen == "native":
        return NativeExperts.apply(x, gate_up, down, experts, weights.float(), kept, False)
    if chosen == "triton" and isinstance(gate_up, Int8Matrices) and isinstance(down, Int8Matrices) and len(x):
        from leyden.ops.experts.launch_int8 import swiglu_experts_int8_triton

        return swiglu_experts_int8_triton(x, gate_up, down, experts, weights, kept)
    return swiglu_experts_portable(x, gate_up, down, experts, weights, kept)
