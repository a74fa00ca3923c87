"""Experts whose products are of 8-bit tiles: one expert after another, each by :func:`leyden.ops.fp8_linear`."""

import torch
from torch.nn.functional import silu

from leyden.ops.experts.portable import sort_rows
from leyden.ops.fp8_linear import fp8_linear


def swiglu_experts_fp8_portable(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """See :func:`leyden.ops.swiglu_experts_fp8`. Rows that fill up are zeros, which change no scale of a tile."""
    sort = sort_rows(experts, kept, gate_up.shape[0])
    if not sort.spans:
        return torch.zeros_like(x)
    rows, parts = sort.gather(x), []
    both = list(zip(gate_up.unbind(), down.unbind(), strict=True))  # whose gradients are stacked, and not added up
    for expert, span in sort.spans:
        of_gate_up, of_down = both[expert]
        gate, up = fp8_linear(rows[span], of_gate_up).chunk(2, dim=-1)
        parts.append(fp8_linear(silu(gate) * up, of_down))
    shares = weights.new_zeros(len(sort.token)).index_copy(0, sort.row, weights.flatten()[sort.order])
    wide = torch.promote_types(x.dtype, torch.float32)
    shared = torch.cat(parts) * shares.to(x.dtype)[:, None]
    return x.new_zeros(x.shape, dtype=wide).index_add(0, sort.token, shared.to(wide)).to(x.dtype)
