"""Lightning attention, token by token: the slow twin that every other body is held to.

    S_t = exp(-slope) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

(the recurrence of Lightning Attention-2, arXiv 2401.04658, with the current token undecayed). Differentiable by
plain autograd; computes in float64 for float64 inputs and in float32 otherwise.
"""

import torch


def lightning_attention_reference(
    q_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHV: torch.Tensor,
    slopes_H: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.lightning_attention`; the state comes back in the dtype computed in."""
    if cu_seqlens is not None:
        return _packed(q_BTHK, k_BTHK, v_BTHV, slopes_H, initial_state, cu_seqlens)
    B, T, H, K = q_BTHK.shape
    V = v_BTHV.shape[-1]
    dtype = torch.float64 if q_BTHK.dtype == torch.float64 else torch.float32
    q, k, v = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV))
    whole_H11, rest_H11 = (part[:, None, None] for part in decay_in_parts(slopes_H.to(dtype)))
    state = q.new_zeros(B, H, K, V) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(T):
        state = whole_H11 * state + (rest_H11 * state + k[:, t, :, :, None] * v[:, t, :, None, :])
        outputs.append((q[:, t, :, :, None] * state).sum(dim=2))
    out = torch.stack(outputs, dim=1) if outputs else q.new_zeros(B, 0, H, V)
    return out.to(q_BTHK.dtype), state


def decay_in_parts(slopes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``exp(-slope)`` as the sum of a whole number and the rest, for states that decay at every token.

    The decay of a slow head is so near to 1 that rounding it changes what the head forgets in a token: in float32 by
    up to ``3e-8 / slope`` of that, at every token alike. The rest alone is as exact as its dtype. Use the parts as
    ``whole * state + (rest * state + added)``, which rounds the sum once.

    Args:
        slopes: [H], at least 0.

    Returns:
        The whole number, 1 for slopes below 0.5 and 0 for others, and the rest: both [H] in the dtype of ``slopes``.
    """
    slow = slopes < 0.5
    return slow.to(slopes.dtype), torch.where(slow, torch.expm1(-slopes), torch.exp(-slopes))


def _packed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each document by itself."""
    outputs, states = [], []
    bounds = cu_seqlens.tolist()
    for n, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        first = None if initial_state is None else initial_state[n : n + 1]
        document = slice(start, end)
        out, state = lightning_attention_reference(q[:, document], k[:, document], v[:, document], slopes, first)
        outputs.append(out)
        states.append(state)
    return torch.cat(outputs, dim=1), torch.cat(states)
