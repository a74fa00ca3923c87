"""What the bodies of gated linear attention take for granted."""

import torch

from leyden.ops.checks import check_bounds, check_floating

OP = "gated_linear_attention"


def check_inputs(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> None:
    """Raise ValueError unless the arguments of :func:`leyden.ops.gated_linear_attention` fit together."""
    if q.ndim != 4 or k.shape != q.shape or v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ValueError(f"{OP}: q, k [B, T, H, K] and v [B, T, H, V] expected; given {shapes}.")
    if log_decay.shape not in (q.shape, (*q.shape[:3], 1)):
        raise ValueError(
            f"{OP}: log_decay {tuple(q.shape)}, or 1 in place of the last for one decay a head, expected; given "
            f"{tuple(log_decay.shape)}."
        )
    if log_decay.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{OP}: log_decay in float32 or float64 expected; given {log_decay.dtype}. Rounded decays forget at "
            "another rate, or not at all: compute them wide."
        )
    check_floating(OP, q=q, k=k, v=v)
    num_states = q.shape[0]
    if cu_seqlens is not None:
        if q.shape[0] != 1:
            raise ValueError(f"{OP}: packed documents lie in one row (B = 1); given B = {q.shape[0]}.")
        check_bounds(OP, cu_seqlens, q.shape[1])
        num_states = cu_seqlens.shape[0] - 1
    wanted = (num_states, q.shape[2], q.shape[3], v.shape[3])
    if initial_state is not None and initial_state.shape != wanted:
        raise ValueError(f"{OP}: initial_state {wanted} expected; given {tuple(initial_state.shape)}.")
