"""Gated linear attention, token by token: the slow twin that every other body is held to.

    S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

(the recurrence of arXiv 2312.06635, equation 3, without a scale). Differentiable by plain autograd; computes in float64
for float64 inputs and in float32 otherwise.
"""

import itertools

import torch


def gated_linear_attention_reference(
    q_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHV: torch.Tensor,
    log_decay: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.gated_linear_attention`; the state comes back in the dtype computed in."""
    if cu_seqlens is not None:
        return _packed(q_BTHK, k_BTHK, v_BTHV, log_decay, initial_state, cu_seqlens)
    B, T, H, K = q_BTHK.shape
    V = v_BTHV.shape[-1]
    dtype = torch.float64 if q_BTHK.dtype == torch.float64 else torch.float32
    q, k, v, decay = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV, log_decay))
    state = q.new_zeros(B, H, K, V) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(T):
        state = torch.exp(decay[:, t, :, :, None]) * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, :, None] * state).sum(dim=2))
    out = torch.stack(outputs, dim=1) if outputs else q.new_zeros(B, 0, H, V)
    return out.to(q_BTHK.dtype), state


def _packed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each document by itself."""
    results = []
    for n, (start, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        first = None if initial_state is None else initial_state[n : n + 1]
        tokens = slice(start, end)
        document = (q[:, tokens], k[:, tokens], v[:, tokens], log_decay[:, tokens])
        results.append(gated_linear_attention_reference(*document, first))
    return torch.cat([out for out, _ in results], dim=1), torch.cat([state for _, state in results])
