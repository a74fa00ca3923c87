"""Gated linear attention in chunks, in plain PyTorch, by whose autograd it is differentiated.

Within a chunk the weight of token j for token i is ``sum_d q_id k_jd exp(g_{j+1,d} + ... + g_{i,d})``. A product of
``q_i exp(g_1 + .. + g_i)`` and ``k_j exp(-g_1 - .. - g_j)`` would give it at once, and overflows where a dim forgets
fast. So the chunk is halved again and again: between the halves of a block every decay is one from the left token to
the boundary, times one from the boundary to the right token. Both are exp of a sum of decays, none of which is taken
back, so that neither overflows, and what is left of a token behind one that forgets all is as exact as elsewhere.

Shapes: B rows, H heads, n chunks of C tokens, K key dims, V value dims; a chunked tensor is [B, H, n, C, *]. All is
computed in float32, or in float64 for float64 inputs.
"""

import itertools

import torch
from torch.nn.functional import pad

_CHUNK = 64


def gated_linear_attention_portable(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.gated_linear_attention`."""
    dtype = q.dtype
    wide = torch.promote_types(dtype, torch.float32)
    q, k, v, log_decay = (x.to(wide) for x in (q, k, v, log_decay.expand(q.shape)))
    if initial_state is None:
        rows = q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        initial_state = q.new_zeros(rows, q.shape[2], q.shape[3], v.shape[3])
    states = initial_state.to(wide)
    if cu_seqlens is None:
        out, state = _row(q, k, v, log_decay, states)
        return out.to(dtype), state
    documents = [slice(start, end) for start, end in itertools.pairwise(cu_seqlens.tolist())]
    results = [
        _row(q[:, tokens], k[:, tokens], v[:, tokens], log_decay[:, tokens], state)
        for tokens, state in zip(documents, states.split(1), strict=True)
    ]
    return torch.cat([out for out, _ in results], dim=1).to(dtype), torch.cat([state for _, state in results])


def step_portable(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.gated_linear_attention_step`."""
    added = k.to(state.dtype).unsqueeze(-1) * v.to(state.dtype).unsqueeze(-2)
    new = _decayed(state, log_decay.to(state.dtype).unsqueeze(-1), added)
    out = torch.matmul(q.to(state.dtype).unsqueeze(-2), new).squeeze(-2)
    return out.to(q.dtype), new


def _row(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [B, T, H, *] of one document each, from a state [B, H, K, V]."""
    T = q.shape[1]
    chunk = min(_CHUNK, 1 << max(0, T - 1).bit_length())
    q, k, v, log_decay = (_in_chunks(x, chunk) for x in (q, k, v, log_decay))
    since = log_decay.cumsum(-2)
    deltas = (k * _later(log_decay).exp()).mT @ v
    states = [state]
    for delta, across in zip(deltas.unbind(2), since[..., -1, :, None].unbind(2), strict=True):
        states.append(_decayed(states[-1], across, delta))
    out = _weights(q, k, log_decay) @ v + (q * since.exp()) @ torch.stack(states[:-1], dim=2)
    return out.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :T], states[-1]


def _in_chunks(x: torch.Tensor, chunk: int) -> torch.Tensor:
    """[B, T, H, D] to [B, H, n, C, D], n at least 1, with zeros behind: they add nothing and forget nothing.

    Of no tokens too, so that for autograd the result depends on all that was given: ranks exchange gradients.
    """
    T = x.shape[1]
    padded = pad(x, (0, 0, 0, 0, 0, -T % chunk if T else chunk))
    return padded.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)


def _weights(q: torch.Tensor, k: torch.Tensor, log_decay: torch.Tensor) -> torch.Tensor:
    """[.., C, C], the weight of token j for token i of each chunk; 0 where j is later. C is a power of two."""
    blocks = (q * k).sum(-1)[..., None, None]  # [.., C / s, s, s], of blocks of s tokens
    for s in (1 << level for level in range((q.shape[-2] - 1).bit_length())):
        (_, right), (left, _), (before, behind) = (x.unflatten(-2, (-1, 2, s)).unbind(-3) for x in (q, k, log_decay))
        between = (right * behind.cumsum(-2).exp()) @ (left * _later(before).exp()).mT
        upper, lower = blocks.unflatten(-3, (-1, 2)).unbind(-3)
        blocks = torch.cat([pad(upper, (0, s)), torch.cat([between, lower], dim=-1)], dim=-2)
    return blocks.squeeze(-3)


def _later(log_decay: torch.Tensor) -> torch.Tensor:
    """[.., C, K], the sum over the tokens behind each in its block."""
    return pad(log_decay[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def _decayed(state: torch.Tensor, log_decay: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """``exp(log_decay) * state + added``.

    A decay that is near 1 is taken as 1 and a rest, since rounding it would change what is forgotten; one that is near
    0 has no such rest, which would round away what is left.
    """
    slow = log_decay > -0.5
    rest = torch.where(slow, torch.expm1(log_decay), torch.exp(log_decay))
    return torch.where(slow, state, 0) + (rest * state + added)
