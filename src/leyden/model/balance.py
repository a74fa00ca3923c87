"""The losses that keep the router's load even and its logits small."""

from collections.abc import Sequence as List
from dataclasses import dataclass

import torch

from leyden.model.config import ModelConfig
from leyden.ops import Routing


@dataclass(frozen=True)
class RouterLosses:
    """What the routers of one forward pass add to the loss, and what to report of them.

    Attributes:
        loss: scalar, already weighted by the coefficients; a mean over tokens.
        load: [layers with experts, E] float32, each expert's share of the kept assignments.
        dropped: scalar float32, the share of assignments that capacity dropped.
    """

    loss: torch.Tensor
    load: torch.Tensor
    dropped: torch.Tensor


def router_losses(config: ModelConfig, routings: List[Routing]) -> RouterLosses:
    """The balance loss, and the z-loss ``mean logsumexp(logits)^2`` averaged over layers (arXiv 2202.08906).

    ``gshard`` (arXiv 2501.08313, section 2.1): per layer ``1/E sum_i f_i m_i``, where f_i counts the share of
    assignments of expert i, scaled so that an even load gives 1 for every expert, and m_i is its mean probability
    scaled alike; summed over layers. The paper leaves the scale of f and m open; this one makes an even load cost 1.
    ``switch`` (released code): ``E sum_i f_i P_i`` with all layers' tokens taken as one batch and the k choices of a
    token counted one by one, so that an even load costs k.

    Args:
        config: the coefficients and the form.
        routings: one a layer with experts, at least one.
    """
    chosen = torch.stack([_chosen(r) for r in routings])  # [L, E], before any drop
    probability = torch.stack([r.probabilities.mean(0) for r in routings])
    num_experts, top_k = config.num_local_experts, config.num_experts_per_tok
    if config.router_aux_loss == "gshard":
        balance = num_experts * (chosen / top_k * probability).sum()
    else:
        balance = num_experts * (chosen.mean(0) * probability.mean(0)).sum()
    loss = config.router_aux_loss_coef * balance
    if config.router_z_loss_coef:
        squares = [torch.logsumexp(r.logits, dim=-1).square().mean() for r in routings]
        loss = loss + config.router_z_loss_coef * torch.stack(squares).mean()
    return RouterLosses(loss, *_report(routings, chosen / top_k))


def _chosen(routing: Routing) -> torch.Tensor:
    """[E], how many assignments each expert was given, per token; sums to k."""
    counts = torch.bincount(routing.experts.flatten(), minlength=routing.logits.shape[-1])
    return counts.to(routing.logits.dtype) / routing.experts.shape[0]


def _report(routings: List[Routing], shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(load, dropped) of :class:`RouterLosses`."""
    if any(r.kept is None for r in routings):
        return shares.float(), torch.zeros((), device=shares.device)
    kept = [r.experts[r.kept] for r in routings if r.kept is not None]
    counts = torch.stack([torch.bincount(e, minlength=shares.shape[1]) for e in kept]).float()
    total = sum(r.experts.numel() for r in routings)
    return counts / counts.sum(1, keepdim=True), 1 - counts.sum() / total
