"""Matrix products of a model in 8-bit floats while it is trained (DeepSeek-V3, arXiv 2412.19437, section 3.3).

What computes with 8 bits: the projections of attention and of dense feed-forwards, shared experts, the routed experts
and the projection of modules for multi-token prediction. What does not: the embedding, the output projection, norms,
routers, the gate of a shared expert, and attention itself.
"""

import torch
from torch import nn

from leyden.model.experts import Experts
from leyden.ops import Int8Matrices, LowRankExperts, Routing, fp8_linear, swiglu_experts_fp8


class Fp8Linear(nn.Linear):
    """A linear layer by :func:`leyden.ops.fp8_linear`, with the weight of the one that it replaces."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.weight = plain.weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., K] to [..., N]."""
        return fp8_linear(input, self.weight)


def compute_in_fp8(
    x: torch.Tensor,
    gate_up: torch.Tensor | Int8Matrices,
    down: torch.Tensor | Int8Matrices,
    routing: Routing,
    additions: LowRankExperts | None = None,
) -> torch.Tensor:
    """In the place of :func:`leyden.model.experts.compute`, of weights that are trained."""
    assert isinstance(gate_up, torch.Tensor) and isinstance(down, torch.Tensor) and additions is None, "refused before"
    return swiglu_experts_fp8(x, gate_up, down, routing.experts, routing.weights, routing.kept)


def use_fp8(model: nn.Module) -> None:
    """Let ``model``, whole and on one process, compute so from here on; its weights and their names stay."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Experts):
            module.compute = compute_in_fp8
        elif type(module) is nn.Linear and not name.endswith("coefficient"):  # the output projection has its own type
            model.set_submodule(name, Fp8Linear(module))
