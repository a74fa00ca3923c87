"""Lightning attention: linear attention with one scalar decay a head, in blocks (arXiv 2401.04658, 2501.08313)."""

import torch

from leyden.ops.backend import choose
from leyden.ops.lightning_attention.checks import check_inputs
from leyden.ops.lightning_attention.native import gradients_pay, lightning_attention_native
from leyden.ops.lightning_attention.pool import (
    lightning_attention_decode,
    lightning_attention_prefill,
)
from leyden.ops.lightning_attention.portable import lightning_attention_portable
from leyden.ops.lightning_attention.reference import lightning_attention_reference
from leyden.ops.lightning_attention.slopes import lightning_slopes
from leyden.ops.lightning_attention.step import lightning_attention_step
from leyden.ops.native import LANES

__all__ = [
    "lightning_attention",
    "lightning_attention_decode",
    "lightning_attention_prefill",
    "lightning_attention_step",
    "lightning_slopes",
]


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
        backend: ``"auto"``, ``"reference"``, ``"torch"``, ``"native"`` or ``"triton"``. The native body takes value
            dims that 16 divides and, where gradients are asked for, such key dims.

    Returns:
        The output [B, T, H, V] in the dtype of q, and the final state in float32 (float64 for float64 inputs),
        shaped as ``initial_state``.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    check_inputs(q, k, v, slopes, initial_state, cu_seqlens)
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, initial_state))
    native = None
    if backend == "native" or (gradients_pay(q, v, cu_seqlens) if learns else v.shape[-1] % LANES == 0):
        native = q.dtype
    given = (q, k, v, slopes, initial_state)
    chosen = choose("lightning_attention", backend, *given, triton=q.dtype, native=native)
    if chosen == "reference":
        return lightning_attention_reference(q, k, v, slopes, initial_state, cu_seqlens)
    if chosen == "native":
        return lightning_attention_native(q, k, v, slopes, initial_state, cu_seqlens)
    if chosen == "triton":
        from leyden.ops.lightning_attention.launch import lightning_attention_triton  # triton, where it is used

        return lightning_attention_triton(q, k, v, slopes, initial_state, cu_seqlens)
    return lightning_attention_portable(q, k, v, slopes, initial_state, cu_seqlens)
