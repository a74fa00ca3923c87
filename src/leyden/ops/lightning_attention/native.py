"""Lightning attention without gradients by ``native.cpp``, whose products are float32 in bfloat16 as well."""

import torch

from leyden.ops.native import LANES, call


def prefill_natively(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
) -> torch.Tensor:
    """See :func:`leyden.ops.lightning_attention_prefill`."""
    width = v.shape[-1]
    if width % LANES:
        raise ValueError(f"lightning attention: native takes value dims that {LANES} divides; given {width}.")
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))  # the thirds of one projection, perhaps
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    slots, bounds = slots.long().contiguous(), cu_seqlens.long().contiguous()
    sizes = (*q.shape[1:], width, states.shape[0], slots.shape[0], bounds.shape[0])
    given = (q, k, v, slopes.float().contiguous(), states, slots, bounds, *sizes, out)
    call("leyden_lightning_prefill", q.dtype, *given)
    return out


def lightning_attention_native(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.lightning_attention`; every row, or every packed document, has a state of its own."""
    B, T, H, K = q.shape
    bounds = torch.arange(B + 1, device=q.device) * T if cu_seqlens is None else cu_seqlens
    shape = (len(bounds) - 1, H, K, v.shape[-1])
    state = q.new_zeros(shape, dtype=torch.float32)
    if initial_state is not None:
        state.copy_(initial_state)
    q, k, v_rows = (x.reshape(1, B * T, *x.shape[2:]) for x in (q, k, v))
    out = prefill_natively(q, k, v_rows, slopes, state, torch.arange(len(state), device=q.device), bounds)
    return out.view_as(v), state
