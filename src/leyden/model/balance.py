"""The losses that keep the router's load even and its logits small."""

from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import pad

from leyden.model.config import ModelConfig
from leyden.model.ranks import Ranks
from leyden.ops import Routing


@dataclass(frozen=True)
class RouterLosses:
    """What the routers of one forward pass add to the loss, and what to report of them.

    Attributes:
        loss: scalar, already weighted by the coefficients; a mean over tokens.
        load: [layers with experts, E] float32, each expert's share of the kept assignments.
        dropped: scalar float32, the share of the model's assignments that capacity dropped.
    """

    loss: torch.Tensor
    load: torch.Tensor
    dropped: torch.Tensor


@dataclass(frozen=True)
class RouterSums:
    """What the routers of some layers contribute to :class:`RouterLosses`; the contributions of all layers add up.

    Attributes:
        loss: scalar, weighted: all but the balance loss ``switch``, which is no sum over layers.
        chosen: [E], for ``switch``: how often a token chose each expert, a mean over all layers; the same on all ranks.
        probability: [E], for ``switch``: this rank's share of the mean probability of each expert.
        load: [layers with experts, E], zero for the layers that these are not.
        dropped: scalar.
    """

    loss: torch.Tensor
    chosen: torch.Tensor
    probability: torch.Tensor
    load: torch.Tensor
    dropped: torch.Tensor


def with_load(routing: Routing, bias: torch.Tensor) -> Routing:
    """``routing``, behind whose backward ``bias.grad`` [E] has risen by how many tokens chose each expert.

    A bias that chooses has no gradient. In its place the load goes wherever gradients go: it is summed over
    micro-batches and ranks, is not counted in a forward pass without a backward, and nothing scales it.
    """
    if not (torch.is_grad_enabled() and bias.requires_grad):
        return routing
    return replace(routing, weights=_Load.apply(routing.weights, bias, routing.experts))


class _Load(torch.autograd.Function):
    """The weights as they are; in the backward the load of the experts as the gradient of the bias."""

    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, bias: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(experts)
        ctx.num_experts, ctx.dtype = len(bias), bias.dtype
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (experts,) = ctx.saved_tensors
        return grads[0], _counts(experts, ctx.num_experts).to(ctx.dtype), None


@dataclass(frozen=True)
class Documents:
    """The documents of the tokens that were routed, for the losses that are formed of each by itself.

    Attributes:
        index: [N] int64, the document of each of this rank's tokens, in the order of the routings.
        lengths: [D], tokens of each document of the row, those of other ranks included.
    """

    index: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, tokens: torch.Tensor, cu_seqlens: torch.Tensor | None, ranks: Ranks) -> "Documents":
        """Of ``tokens`` [B, T]: the packed documents of one row, or else each row is a document."""
        rows, length = tokens.shape
        if cu_seqlens is None:
            index = torch.arange(rows, device=tokens.device)[:, None].expand(rows, length)
            return cls(ranks.own(index).flatten(), torch.full((rows,), length, device=tokens.device))
        lengths = cu_seqlens.diff().long().to(tokens.device)
        numbers = torch.arange(len(lengths), device=tokens.device)
        index = numbers.repeat_interleave(lengths, output_size=length)[None]
        return cls(ranks.own(index).flatten(), lengths)


def router_losses(
    config: ModelConfig, routings: List[Routing], ranks: Ranks | None = None, documents: Documents | None = None
) -> RouterLosses:
    """The balance loss, and the z-loss ``mean logsumexp(logits)^2`` averaged over layers (arXiv 2202.08906).

    ``gshard`` (arXiv 2501.08313, section 2.1): per layer ``1/E sum_i f_i m_i``, where f_i counts the share of
    assignments of expert i, scaled so that an even load gives 1 for every expert, and m_i is its mean probability
    scaled alike; summed over layers. The paper leaves the scale of f and m open; this one makes an even load cost 1.
    ``switch`` (released code): ``E sum_i f_i P_i`` with all layers' tokens taken as one batch and the k choices of a
    token counted one by one, so that an even load costs k.
    ``sequence`` (DeepSeek-V3, arXiv 2412.19437, equations 17 to 20): per layer and document ``sum_i f_i P_i``, where
    f_i is E / k times the share of the document's tokens that have expert i among their k highest scores, whatever the
    bias and the groups choose, and P_i its mean probability there; a mean over documents by their tokens, summed over
    layers. An even load costs 1.

    Beside each of these, with ``router_group_loss_coef``, the loss of DeepSeek-V2 over devices (arXiv 2405.04434,
    section 2.2.3): per layer ``sum_g f'_g P'_g``, where f'_g is the mean over the experts of group g of E / k times
    the share of tokens that chose the expert, and P'_g the sum of their mean probabilities; over all tokens of a
    micro-batch, summed over layers. An even load costs 1.

    Args:
        config: the coefficients and the form.
        routings: one a layer with experts, of all of them; of this rank's tokens.
        ranks: those that share the micro-batch; every mean is over all of their tokens, and what is returned is this
            rank's share of it: shares add up.
        documents: of these tokens; only ``sequence`` asks for them.
    """
    every = range(config.num_hidden_layers)
    return total_router_losses(config, router_sums(config, routings, every, ranks, documents))


def total_router_losses(config: ModelConfig, sums: RouterSums) -> RouterLosses:
    """The losses of a model, of the contributions of all its layers."""
    loss = sums.loss
    if config.router_aux_loss == "switch":
        loss = loss + config.router_aux_loss_coef * config.num_local_experts * (sums.chosen * sums.probability).sum()
    return RouterLosses(loss, sums.load.detach().float(), sums.dropped.detach().float())


def router_sums(
    config: ModelConfig,
    routings: List[Routing],
    layers: range,
    ranks: Ranks | None = None,
    documents: Documents | None = None,
) -> RouterSums:
    """What some layers contribute; arguments as of :func:`router_losses`.

    Args:
        routings: one for each of ``layers`` that has experts, at least one.
        layers: which these are.
    """
    every, own = config.expert_layers(), config.expert_layers(layers)
    if len(routings) != len(own):
        raise RuntimeError(f"the routers of {len(own)} layers (in {layers}) expected; given {len(routings)} routings.")
    ranks = ranks or Ranks()
    num_experts, top_k, num_layers = config.num_local_experts, config.num_experts_per_tok, len(every)
    before = len(config.expert_layers(range(layers.start)))
    local = torch.stack([_counts(r.experts, num_experts) for r in routings])  # [L, E], before any drop
    kept = torch.stack([_counts(r.experts, num_experts, r.kept) for r in routings])
    all_chosen, all_kept = ranks.sum(torch.stack([local, kept])).to(routings[0].probabilities.dtype)
    num_tokens = all_chosen[0].sum() / top_k
    chosen = all_chosen / num_tokens  # [L, E], rows sum to k
    probability = torch.stack([r.probabilities.sum(0) for r in routings]) / num_tokens
    loss = num_tokens.new_zeros(())
    if config.router_aux_loss == "gshard":
        loss = loss + config.router_aux_loss_coef * num_experts * (chosen / top_k * probability).sum()
    if config.router_aux_loss == "sequence" and config.router_aux_loss_coef:
        if documents is None:
            raise RuntimeError("the sequence-wise balance loss is formed of the documents of the tokens; none given.")
        loss = loss + config.router_aux_loss_coef * _of_sequences(routings, documents, top_k, ranks) / num_tokens
    if config.router_group_loss_coef:
        loss = loss + config.router_group_loss_coef * _of_groups(chosen, probability, top_k, config.n_group)
    if config.router_z_loss_coef:
        squares = [torch.logsumexp(r.logits, dim=-1).square().sum() / num_tokens for r in routings]
        loss = loss + config.router_z_loss_coef * torch.stack(squares).sum() / num_layers
    return RouterSums(
        loss=loss,
        chosen=chosen.sum(0) / num_layers,
        probability=probability.sum(0) / num_layers,
        load=pad(kept / all_kept.sum(1, keepdim=True), (0, 0, before, num_layers - before - len(own))),
        dropped=(local - kept).sum() / (num_tokens * top_k * num_layers),
    )


def _of_groups(chosen: torch.Tensor, probability: torch.Tensor, top_k: int, num_groups: int) -> torch.Tensor:
    """``sum_g f'_g P'_g``, summed over layers, of choices a token and mean probabilities [L, E]."""
    shares = (chosen * (chosen.shape[1] / top_k)).unflatten(1, (num_groups, -1)).mean(-1)
    return (shares * probability.unflatten(1, (num_groups, -1)).sum(-1)).sum()


def _of_sequences(routings: List[Routing], documents: Documents, top_k: int, ranks: Ranks) -> torch.Tensor:
    """The sum over layers and documents of tokens times ``sum_i f_i P_i``; of each P, this rank's share."""
    num_documents, num_experts = len(documents.lengths), routings[0].probabilities.shape[1]
    first = documents.index[:, None] * num_experts
    best = [first + r.probabilities.detach().topk(top_k, dim=-1).indices for r in routings]
    counts = torch.stack([_counts(one, num_documents * num_experts) for one in best])
    probability = torch.stack(
        [
            r.probabilities.new_zeros(num_documents, num_experts).index_add(0, documents.index, r.probabilities)
            for r in routings
        ]
    )
    chosen = ranks.row_sum(counts.to(probability.dtype)).view_as(probability)  # [L, D, E], of all ranks of the row
    each = (chosen * probability).sum((0, 2)) / documents.lengths.clamp_min(1)
    return num_experts / top_k * each.sum()


def _counts(experts: torch.Tensor, num_experts: int, kept: torch.Tensor | None = None) -> torch.Tensor:
    """[E] int64, how many assignments each expert has; of those that were kept, where ``kept`` says which."""
    ones = torch.ones_like(experts) if kept is None else kept.long()
    return ones.new_zeros(num_experts).scatter_add_(0, experts.flatten(), ones.flatten())
