"""Gated linear attention: linear attention whose decays follow from the data, a dim at a time (arXiv 2312.06635).

Lightning attention is the case of one decay a head that no token changes, for which there are faster bodies:
:func:`leyden.ops.lightning_attention`.
"""

import torch

from leyden.ops.backend import choose
from leyden.ops.gated_linear_attention.checks import OP, check_inputs
from leyden.ops.gated_linear_attention.native import GatedLinearAttention, native_dtype, step_natively
from leyden.ops.gated_linear_attention.pool import gated_linear_attention_decode, gated_linear_attention_prefill
from leyden.ops.gated_linear_attention.portable import gated_linear_attention_portable, step_portable
from leyden.ops.gated_linear_attention.reference import gated_linear_attention_reference
from leyden.ops.gradients import backward_may_follow

__all__ = [
    "gated_linear_attention",
    "gated_linear_attention_decode",
    "gated_linear_attention_prefill",
    "gated_linear_attention_step",
]


def gated_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal linear attention: ``S_t = Diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t``.

    There is no scale; the current token enters undecayed. Differentiable in q, k, v, the decays and the initial state,
    through the output and the final state alike.

    Args:
        q, k: [B, T, H, K], any floating dtype (all three the same).
        v: [B, T, H, V].
        log_decay: [B, T, H, K], or [B, T, H, 1] for one decay a head, float32 or float64; 0 at most, and minus
            infinity for a dim that forgets all that was before the token.
        initial_state: [B, H, K, V] float32, or [N, H, K, V] with ``cu_seqlens``; zeros where None.
        cu_seqlens: [N+1] integers from 0 to T: N documents packed into one row (B = 1), each with a state of its own.
        backend: ``"auto"``, ``"reference"``, ``"torch"``, ``"triton"``, or ``"native"``, whose output and gradients
            have the same bits in whatever parts a sequence is computed.

    Returns:
        The output [B, T, H, V] in the dtype of q, and the final state in float32 (float64 for float64 inputs),
        shaped as ``initial_state``.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    check_inputs(q, k, v, log_decay, initial_state, cu_seqlens)
    given = (q, k, v, log_decay, initial_state)
    chosen = choose(OP, backend, *given, triton=q.dtype, native=native_dtype(backend, q, v))
    if chosen == "native":
        return GatedLinearAttention.apply(q, k, v, log_decay.expand(q.shape), initial_state, cu_seqlens)
    if chosen == "triton":
        from leyden.ops.gated_linear_attention.launch import gated_linear_attention_triton  # triton, where it is used

        return gated_linear_attention_triton(q, k, v, log_decay.expand(q.shape), initial_state, cu_seqlens)
    body = gated_linear_attention_reference if chosen == "reference" else gated_linear_attention_portable
    return body(q, k, v, log_decay, initial_state, cu_seqlens)


def gated_linear_attention_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    state: torch.Tensor,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of :func:`gated_linear_attention` (decoding).

    Args:
        q, k: [B, H, K].
        v: [B, H, V].
        log_decay: [B, H, K] or [B, H, 1], float32 or float64.
        state: [B, H, K, V] float32 (or float64); not changed.
        backend: ``"auto"``, ``"torch"``, ``"triton"``, or ``"native"``, which has the bits of a prefill. The last two
            have no gradients and float32 states; ``"auto"`` takes them where that is all that is asked for.

    Returns:
        The output [B, H, V] in the dtype of q, and the new state.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    check_inputs(q[:, None], k[:, None], v[:, None], log_decay[:, None], state, None)
    plain = state.dtype == torch.float32 and not backward_may_follow(q, k, v, log_decay, state)
    triton, native = (q.dtype, native_dtype(backend, q, v)) if plain else (None, None)
    chosen = choose(f"{OP}_step", backend, q, k, v, log_decay, state, triton=triton, native=native)
    if chosen == "triton":
        from leyden.ops.gated_linear_attention.launch import step

        return step(q, k, v, log_decay.float().expand(q.shape), state)
    if chosen != "native":
        return step_portable(q, k, v, log_decay, state)
    new = state.clone(memory_format=torch.contiguous_format)
    return step_natively(q, k, v, log_decay, new, torch.arange(len(q))), new
