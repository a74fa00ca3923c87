"""What the bodies of lightning attention take for granted."""

import torch

from leyden.ops.checks import check_bounds, check_floating
from leyden.ops.native import in_reach


def check_inputs(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> None:
    """Raise ValueError unless the arguments of :func:`leyden.ops.lightning_attention` fit together."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, slopes {tuple(slopes.shape)}"
    if q.ndim != 4 or k.shape != q.shape or v.shape[:3] != q.shape[:3] or v.ndim != 4:
        raise ValueError(f"lightning_attention: q, k [B, T, H, K] and v [B, T, H, V] expected; given {shapes}.")
    if slopes.shape != (q.shape[2],):
        raise ValueError(f"lightning_attention: one slope a head expected; given {shapes}.")
    check_slopes(slopes)
    check_floating("lightning_attention", q=q, k=k, v=v)
    num_states = q.shape[0]
    if cu_seqlens is not None:
        if q.shape[0] != 1:
            raise ValueError(f"lightning_attention: packed documents lie in one row (B = 1); given B = {q.shape[0]}.")
        check_bounds("lightning_attention", cu_seqlens, q.shape[1])
        num_states = cu_seqlens.shape[0] - 1
    wanted = (num_states, q.shape[2], q.shape[3], v.shape[3])
    if initial_state is not None and initial_state.shape != wanted:
        raise ValueError(f"lightning_attention: initial_state {wanted} expected; given {tuple(initial_state.shape)}.")


def check_slopes(slopes: torch.Tensor) -> None:
    """Raise ValueError where slopes are narrower than float32: rounded decays forget at another rate, or not at all."""
    if slopes.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"lightning_attention: slopes in float32 or float64 expected; given {slopes.dtype}. Converting a module's "
            "dtype converts its buffers too: keep the slopes out of that, or make them anew by lightning_slopes."
        )


def check_pool(
    q: torch.Tensor,
    v: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
    num_sequences: int,
    *,
    negative: bool = False,
    op: str = "lightning_attention",
) -> None:
    """Raise ValueError unless states [S, H, K, V] and distinct slots fit q [.., T, H, K] and v.

    With ``negative`` a negative slot is allowed, and is none; ``op`` is named in the message.
    """
    wanted = (q.shape[2], q.shape[3], v.shape[3])
    if states.shape[1:] != wanted or states.dtype != torch.float32 or not states.is_contiguous():
        raise ValueError(
            f"{op}: states [S, {', '.join(map(str, wanted))}] float32, contiguous, expected; "
            f"given {tuple(states.shape)} {states.dtype}."
        )
    if slots.shape != (num_sequences,) or slots.is_floating_point():
        raise ValueError(f"{op}: {num_sequences} slots expected, integers; given {slots}.")
    if torch.compiler.is_compiling() or not in_reach(slots):
        return
    named = slots.tolist()
    if negative:
        named = [slot for slot in named if slot >= 0]
    if named and (len({*named}) < len(named) or min(named) < 0 or max(named) >= states.shape[0]):
        allowed = f"from 0 to {len(states) - 1}, each at most once"
        raise ValueError(f"{op}: slots {allowed}, expected; given {slots.tolist()}.")
