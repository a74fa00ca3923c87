"""One decoding step of lightning attention whose states the caller holds (without a pool)."""

import torch

from leyden.ops.backend import choose
from leyden.ops.lightning_attention.checks import check_inputs
from leyden.ops.lightning_attention.portable import step_portable


def lightning_attention_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    state: torch.Tensor,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of :func:`lightning_attention` (decoding).

    Args:
        q, k: [B, H, K].
        v: [B, H, V].
        slopes: [H].
        state: [B, H, K, V] float32 (or float64); not changed.
        backend: ``"auto"``, ``"torch"`` or ``"triton"``. The Triton body has no gradients and float32 states;
            ``"auto"`` takes it where that is all that is asked for.

    Returns:
        The output [B, H, V] in the dtype of q, and the new state.

    Raises:
        ValueError: shapes or dtypes that do not fit together, slopes narrower than float32, or a backend that cannot
            run.
    """
    check_inputs(q[:, None], k[:, None], v[:, None], slopes, state, None)
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, state))
    in_triton = q.dtype if state.dtype == torch.float32 and not learns else None
    if choose("lightning_attention_step", backend, q, k, v, slopes, state, triton=in_triton) != "triton":
        return step_portable(q, k, v, slopes, state)
    from leyden.ops.lightning_attention.launch import step

    return step(q, k, v, slopes.float(), state)
