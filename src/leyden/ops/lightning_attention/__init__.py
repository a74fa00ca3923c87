"""Lightning attention: linear attention with one scalar decay a head, in blocks (arXiv 2401.04658, 2501.08313)."""

import torch

from leyden.ops.backend import choose
from leyden.ops.lightning_attention.portable import lightning_attention_portable
from leyden.ops.lightning_attention.reference import lightning_attention_reference
from leyden.ops.lightning_attention.slopes import lightning_slopes

__all__ = ["lightning_attention", "lightning_attention_step", "lightning_slopes"]


def lightning_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal linear attention with decay: ``S_t = exp(-slope) S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t``.

    There is no scale and no feature map; the current token enters undecayed. Differentiable in q, k, v and the
    initial state, through the output and the final state alike.

    Args:
        q, k: [B, T, H, K], any floating dtype (all three the same).
        v: [B, T, H, V].
        slopes: [H], at least 0; the decay per token is ``exp(-slope)``. No gradient.
        initial_state: [B, H, K, V] float32, or [N, H, K, V] with ``cu_seqlens``; zeros where None.
        cu_seqlens: [N+1] integers from 0 to T: N documents packed into one row (B = 1), each with a state of its own.
        backend: ``"auto"``, ``"reference"``, ``"torch"`` or ``"triton"``.

    Returns:
        The output [B, T, H, V] in the dtype of q, and the final state in float32 (float64 for float64 inputs),
        shaped as ``initial_state``.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    _check(q, k, v, slopes, initial_state, cu_seqlens)
    chosen = choose("lightning_attention", backend, q.device, triton=q.dtype)
    if chosen == "reference":
        return lightning_attention_reference(q, k, v, slopes, initial_state, cu_seqlens)
    if chosen == "triton":
        from leyden.ops.lightning_attention.launch import lightning_attention_triton  # triton, where it is used

        return lightning_attention_triton(q, k, v, slopes, initial_state, cu_seqlens)
    return lightning_attention_portable(q, k, v, slopes, initial_state, cu_seqlens)


def lightning_attention_step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of :func:`lightning_attention` (decoding).

    Args:
        q, k: [B, H, K].
        v: [B, H, V].
        slopes: [H].
        state: [B, H, K, V] float32 (or float64); not changed.

    Returns:
        The output [B, H, V] in the dtype of q, and the new state.
    """
    decay = torch.exp(-slopes.to(state.dtype)).view(-1, 1, 1)
    new = torch.mul(state, decay)
    new.addcmul_(k.to(state.dtype).unsqueeze(-1), v.to(state.dtype).unsqueeze(-2))
    out = torch.matmul(q.to(state.dtype).unsqueeze(-2), new).squeeze(-2)
    return out.to(q.dtype), new


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, slopes {tuple(slopes.shape)}"
    if q.ndim != 4 or k.shape != q.shape or v.shape[:3] != q.shape[:3] or v.ndim != 4:
        raise ValueError(f"lightning_attention: q, k [B, T, H, K] and v [B, T, H, V] expected; given {shapes}.")
    if slopes.shape != (q.shape[2],):
        raise ValueError(f"lightning_attention: one slope a head expected; given {shapes}.")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        given = f"q {q.dtype}, k {k.dtype}, v {v.dtype}"
        raise ValueError(f"lightning_attention: one dtype, a floating one, expected; given {given}.")
    num_states = q.shape[0]
    if cu_seqlens is not None:
        if q.shape[0] != 1:
            raise ValueError(f"lightning_attention: packed documents lie in one row (B = 1); given B = {q.shape[0]}.")
        _check_bounds(cu_seqlens, q.shape[1])
        num_states = cu_seqlens.shape[0] - 1
    wanted = (num_states, q.shape[2], q.shape[3], v.shape[3])
    if initial_state is not None and initial_state.shape != wanted:
        raise ValueError(
            f"lightning_attention: initial_state {wanted} expected; given {tuple(initial_state.shape)}."
        )


def _check_bounds(cu_seqlens: torch.Tensor, num_tokens: int) -> None:
    bounds = cu_seqlens.tolist()
    integers = cu_seqlens.ndim == 1 and not cu_seqlens.is_floating_point() and len(bounds) > 1
    if not integers or bounds[0] != 0 or bounds[-1] != num_tokens or sorted(bounds) != bounds:
        raise ValueError(
            f"lightning_attention: cu_seqlens [N+1] expected, integers that rise from 0 to T = {num_tokens}; "
            f"given {cu_seqlens}."
        )
