"""Top-k routing of tokens to experts, expert capacity, and the losses that balance the router."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from leyden.ops.backend import choose
from leyden.ops.checks import check_floating
from leyden.ops.routing.native import NativeRoute

__all__ = ["Routing", "drop_over_capacity", "expert_capacity", "route"]


@dataclass(frozen=True)
class Routing:
    """Where N tokens go among E experts.

    Attributes:
        experts: [N, k] int64, distinct within a row, most probable first.
        weights: [N, k] float32, what each expert's output is multiplied by; rows sum to 1 before any drop.
        probabilities: [N, E] float32, the softmax over all experts (for the balance losses).
        logits: [N, E] float32 (for the z-loss).
        kept: [N, k] bool, False where capacity dropped the assignment; None where nothing was dropped.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    probabilities: torch.Tensor
    logits: torch.Tensor
    kept: torch.Tensor | None = None


def route(logits: torch.Tensor, top_k: int, backend: str = "auto") -> Routing:
    """Softmax over all experts, the k most probable, renormalised to sum to 1 (arXiv 2501.08313, equation 1).

    Args:
        logits: [N, E] float32 (or float64).
        top_k: k, from 1 to E.
        backend: ``"auto"``, ``"reference"``, ``"torch"`` (which is the reference), or in float32 ``"native"`` or
            ``"triton"``.

    Raises:
        ValueError: k out of bounds, or a backend that cannot run.
    """
    if logits.ndim != 2:
        raise ValueError(f"route: logits [N, E] expected; given {tuple(logits.shape)}.")
    check_floating("route", logits=logits)
    if not 1 <= top_k <= logits.shape[1]:
        raise ValueError(f"route: top_k from 1 to the {logits.shape[1]} experts expected; given {top_k}.")
    float32 = logits.dtype if logits.dtype == torch.float32 else None
    chosen = choose("route", backend, logits, triton=float32, native=float32)
    if chosen == "native":
        experts, weights, probabilities = NativeRoute.apply(logits, top_k)
        return Routing(experts, weights, probabilities, logits)
    if chosen == "triton":
        from leyden.ops.routing.launch import route_triton  # triton, where it is used

        experts, weights, probabilities = route_triton(logits, top_k)
        return Routing(experts, weights, probabilities, logits)
    probabilities = logits.softmax(-1)
    weights, experts = probabilities.topk(top_k, dim=-1)
    return Routing(experts, weights / weights.sum(-1, keepdim=True), probabilities, logits)


def expert_capacity(num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> int:
    """How many assignments one expert takes: ``ceil(capacity_factor * num_tokens * top_k / num_experts)``."""
    return math.ceil(capacity_factor * num_tokens * top_k / num_experts)


def drop_over_capacity(routing: Routing, capacity: int, by: Literal["probability", "position"]) -> Routing:
    """Keep at most ``capacity`` assignments an expert; the weights of the others become zero, unrenormalised.

    Args:
        routing: as :func:`route` made it.
        capacity: the most assignments an expert takes.
        by: ``"probability"`` keeps the assignments of highest router probability (the earlier token where they tie),
            ``"position"`` those of the earliest tokens.
    """
    num_tokens, top_k = routing.experts.shape
    expert = routing.experts.flatten()
    order = torch.arange(expert.numel(), device=expert.device)
    if by == "probability":
        chosen = routing.probabilities.gather(1, routing.experts).flatten()
        order = torch.argsort(chosen, descending=True, stable=True)
    # By expert, and within one in the order of keeping: how many of the expert's assignments stand before each.
    order = order[torch.argsort(expert[order], stable=True)]
    by_expert = expert[order]
    rank = torch.arange(expert.numel(), device=expert.device) - torch.searchsorted(by_expert, by_expert)
    kept = torch.empty_like(expert, dtype=torch.bool)
    kept[order] = rank < capacity
    kept = kept.view(num_tokens, top_k)
    weights = routing.weights * kept
    return Routing(routing.experts, weights, routing.probabilities, routing.logits, kept)
