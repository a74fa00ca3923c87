"""Top-k routing of tokens to experts, expert capacity, and the losses that balance the router."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from leyden.ops.backend import choose
from leyden.ops.checks import check_floating
from leyden.ops.routing.native import NativeRoute

__all__ = ["Groups", "Routing", "drop_over_capacity", "expert_capacity", "route", "route_in_groups"]


@dataclass(frozen=True)
class Routing:
    """Where N tokens go among E experts.

    Attributes:
        experts: [N, k] int64, distinct within a row, the first choice first.
        weights: [N, k] float32, what each expert's output is multiplied by; of :func:`route`, rows sum to 1 before any
            drop.
        probabilities: [N, E] float32, rows sum to 1 (for the balance losses, and for what capacity keeps): the softmax
            over all experts, or of :func:`route_in_groups` each expert's share of a token's scores.
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


@dataclass(frozen=True)
class Groups:
    """How :func:`route_in_groups` limits a token to some of the experts.

    Attributes:
        count: into how many groups the experts are cut, consecutive and of one size.
        chosen: of how many groups a token's experts may be.
        score: by what groups are chosen: the sum of a group's two highest scores (DeepSeek-V3, arXiv 2412.19437,
            section 2.1.2), or its highest (DeepSeek-V2, arXiv 2405.04434, section 2.2.2).
    """

    count: int = 1
    chosen: int = 1
    score: Literal["top2_sum", "max"] = "top2_sum"


_ALL = Groups()


def route_in_groups(
    logits: torch.Tensor,
    bias: torch.Tensor,
    top_k: int,
    groups: Groups = _ALL,
    *,
    normalize: bool = True,
    scale: float = 1.0,
) -> Routing:
    """Sigmoid scores; a bias chooses with them and does not weigh (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).

    With ``p = sigmoid(logits)``, groups and then experts are chosen by ``p + bias``. An expert that was chosen weighs
    ``scale * p``, divided by the sum of the chosen p (and 1e-20) if ``normalize``. The choice has no gradient.

    Args:
        logits: [N, E] float32 (or float64).
        bias: [E], in the same dtype.
        top_k: k, from 1 to the number of experts in the groups that a token may use.
        groups: which those are.
        normalize: let weights sum to ``scale``.
        scale: of the weights.

    Raises:
        ValueError: shapes that do not fit, or numbers out of bounds.
    """
    if logits.ndim != 2 or bias.shape != logits.shape[1:]:
        given = f"{tuple(logits.shape)} and {tuple(bias.shape)}"
        raise ValueError(f"route_in_groups: logits [N, E] and a bias [E] expected; given {given}.")
    check_floating("route_in_groups", logits=logits, bias=bias)
    num_experts = logits.shape[1]
    if num_experts % groups.count or not 1 <= groups.chosen <= groups.count:
        raise ValueError(
            f"route_in_groups: groups that divide the {num_experts} experts, and a choice of 1 to all of them, "
            f"expected; given {groups.chosen} of {groups.count}."
        )
    size = num_experts // groups.count
    if not 1 <= top_k <= groups.chosen * size:
        raise ValueError(
            f"route_in_groups: top_k from 1 to the {groups.chosen * size} experts of {groups.chosen} groups expected; "
            f"given {top_k}."
        )
    scores = logits.sigmoid()
    with torch.no_grad():
        biased = scores + bias
        if groups.chosen < groups.count:
            grouped = biased.unflatten(1, (groups.count, size))
            best = grouped.topk(min(2, size) if groups.score == "top2_sum" else 1, dim=-1).values.sum(-1)
            outside = torch.ones_like(best, dtype=torch.bool)
            outside.scatter_(1, best.topk(groups.chosen, dim=-1).indices, False)
            biased = grouped.masked_fill(outside[..., None], -torch.inf).flatten(1)
        experts = biased.topk(top_k, dim=-1).indices
    weights = scores.gather(1, experts)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(experts, weights * scale, scores / (scores.sum(-1, keepdim=True) + 1e-20), logits)


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
