"""Top-k routing of tokens to experts, expert capacity, and the losses that balance the router."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from leyden.ops.backend import choose
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
        backend: ``"auto"``, ``"reference"``, ``"torch"`` (which is the reference) or ``"native"``.

    Raises:
        ValueError: k out of bounds, or a backend that cannot run.
    """
    if not 1 <= top_k <= logits.shape[1]:
        raise ValueError(f"route: top_k from 1 to the {logits.shape[1]} experts expected; given {top_k}.")
    native = logits.dtype if logits.dtype == torch.float32 else None
    if choose("route", backend, logits.device, native=native) == "native":
        experts, weights, probabilities = NativeRoute.apply(logits, top_k)
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
    # Within an expert, how many assignments stand before this one in the order of keeping.
    one_hot = torch.nn.functional.one_hot(expert[order], routing.logits.shape[-1])
    rank = (one_hot.cumsum(0) * one_hot).sum(-1) - 1
    kept = torch.empty_like(expert, dtype=torch.bool)
    kept[order] = rank < capacity
    kept = kept.view(num_tokens, top_k)
    weights = routing.weights * kept
    return Routing(routing.experts, weights, routing.probabilities, routing.logits, kept)
