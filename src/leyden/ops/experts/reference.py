"""Every expert on every token, then the weighted sum: the slow twin."""

import torch
from torch.nn.functional import silu


def swiglu_experts_reference(
    x_ND: torch.Tensor,
    gate_up_EGD: torch.Tensor,
    down_EDF: torch.Tensor,
    experts_Nk: torch.Tensor,
    weights_Nk: torch.Tensor,
    kept_Nk: torch.Tensor | None,
) -> torch.Tensor:
    """See :func:`leyden.ops.swiglu_experts`."""
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    x, gate_up, down, weights = (t.to(dtype) for t in (x_ND, gate_up_EGD, down_EDF, weights_Nk))
    gate, up = torch.einsum("nd,egd->neg", x, gate_up).chunk(2, dim=-1)
    y_NED = torch.einsum("nef,edf->ned", silu(gate) * up, down)
    if kept_Nk is not None:
        weights = weights * kept_Nk
    share_NE = x.new_zeros(y_NED.shape[:2]).scatter_add(1, experts_Nk, weights)
    return torch.einsum("ne,ned->nd", share_NE, y_NED).to(x_ND.dtype)
