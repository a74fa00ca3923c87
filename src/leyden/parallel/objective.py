"""What a step minimises, in the one form that a single process, the ranks of a row and a pipeline can all compute.

An objective turns the hidden states of a packed row into sums; the step adds up the sums of all micro-batches and ranks
and divides once by their weight. Means would not do: micro-batches of unequal length would count alike.

The losses of the routers, and those of modules for multi-token prediction, belong to the model and not to the
objective: they are added here, to whatever is minimised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from leyden.core.transfers import sent
from leyden.model.nextn import labels_behind
from leyden.model.vision import Pictures
from leyden.ops import IGNORE_INDEX

ROUTER_METRICS = ("expert_load", "dropped")
"""What is logged of the routers: [layers with experts, E], each expert's share of the assignments, and the share of
assignments that capacity dropped. Without experts, [0, 0] and 0."""


class Row(Protocol):
    """One micro-batch: documents packed in one row. An objective may ask more of it."""

    @property
    def tokens(self) -> torch.Tensor:
        """[1, T] int64."""
        ...

    @property
    def labels(self) -> torch.Tensor:
        """[1, T] int64, the target of each position, or :data:`leyden.ops.IGNORE_INDEX`."""
        ...

    @property
    def cu_seqlens(self) -> torch.Tensor:
        """[N+1] int32 on the CPU, where each document begins, and the end."""
        ...


@dataclass(frozen=True)
class Sums:
    """What one micro-batch contributes to a step. Every value is a sum, so that contributions add.

    Where ranks share a row, each contributes what it computed: of the tokens that are its own (``model.ranks.own``),
    or ``model.ranks.once`` of a value that every one of them has of the whole row.

    Attributes:
        loss: scalar, what is minimised. Its gradient flows into the model.
        weight: scalar, what loss and metrics are divided by: how many labels, or pairs, or completions.
        metrics: scalars without a gradient, by name, which are logged once they are divided by the weight.
    """

    loss: torch.Tensor
    weight: torch.Tensor
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What is minimised. It is not called where a rank has no part of a loss, as on the first stages of a pipeline.

    Attributes:
        counts: what the weight is a number of, in the plural, as ``"labels"``. The weight is logged under this name.
        metrics: the names of :attr:`Sums.metrics`, the same ones for every row. ``"loss"`` is not listed.
    """

    @property
    def counts(self) -> str: ...

    @property
    def metrics(self) -> Sequence[str]: ...

    def sums(self, model: Any, features: Any, batch: Any, /) -> Sums:
        """The sums of one packed row.

        Args:
            model: a :class:`leyden.model.HybridLM`, or the last stage of one: what both have is
                :class:`leyden.model.losses.TokenLossModel`.
            features: what its layers made of the row; ``features.hidden`` is [1, T', D] of this rank's own tokens.
            batch: a :class:`Row`, and whatever else its iterator puts into it; the same on all ranks of the row.

        Returns:
            The sums. Besides those listed, ``metrics`` may have ``"loss"``, which is then logged as the loss in place
            of what is minimised; the difference of both is logged as ``aux_loss``.
        """
        ...


def sums_of_row(objective: Objective, model: Any, batch: Row, *, mtp_weight: float = 0.0) -> Sums:
    """The sums of one row by a model whose layers are all here; of this rank's tokens, where ranks share it.

    Args:
        objective, model, batch: as of :meth:`Objective.sums`.
        mtp_weight: what the mean of the losses of the modules for multi-token prediction is weighted by; 0: they are
            not computed.
    """
    tokens = sent(batch.tokens, model.lm_head.weight.device)
    asked: dict[str, Any] = {"ahead": True} if mtp_weight and model.config.num_nextn_predict_layers else {}
    if (pictures := pictures_of(batch, tokens.device)) is not None:
        asked["inserts"] = pictures
    features = model.features(tokens, cu_seqlens=batch.cu_seqlens, **asked)
    return sums_of_features(objective, model, features, batch, mtp_weight=mtp_weight)


def pictures_of(batch: Row, device: torch.device) -> Pictures | None:
    """The pictures of a row whose iterator puts some into it, as ``pictures``, sent to ``device``; None: no field."""
    pictures: Pictures | None = getattr(batch, "pictures", None)
    if pictures is None:
        return None
    return Pictures(*(sent(part, device) for part in (pictures.tiles, pictures.rows, pictures.places)))


def sums_of_features(objective: Objective, model: Any, features: Any, batch: Row, *, mtp_weight: float = 0.0) -> Sums:
    """The objective's sums with those of the routers, which are a mean over the row's tokens for each unit of weight.

    ``mtp_weight`` weighs what modules for multi-token prediction made, if ``features`` have it.

    Returns:
        Sums whose metrics are ``loss``, the objective's, those of :func:`mtp_metrics`, and :data:`ROUTER_METRICS`, in
        this order on every rank.

    Raises:
        RuntimeError: the objective's metrics are not those that it lists, or no scalars: ranks could not add them up.
    """
    own = objective.sums(model, features, batch)
    metrics = _listed(objective, own)
    if getattr(features, "ahead", ()):
        loss, named = _mtp_sums(model, features.ahead, batch, mtp_weight)
        own, metrics = replace(own, loss=own.loss + loss), metrics | named
    if not model.config.num_local_experts:
        zero = torch.zeros((), device=own.loss.device)
        return Sums(own.loss, own.weight, metrics | _named(zero.expand(0, 0), zero))
    routers = model.router_losses(features)
    weight = model.ranks.sum(own.weight)
    return Sums(
        loss=own.loss + routers.loss * weight,
        weight=own.weight,
        metrics=metrics | _named(routers.load * weight, routers.dropped * weight),
    )


def mtp_metrics(number: int) -> list[tuple[str, str]]:
    """Of each of so many modules for multi-token prediction the names of two sums: of its nats, and of its labels."""
    return [(f"mtp_loss_{places}", f"mtp_labels_{places}") for places in range(1, number + 1)]


def _mtp_sums(
    model: Any, ahead: Sequence[torch.Tensor], batch: Row, weight: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """``weight / D`` times the summed cross-entropies of D modules (arXiv 2412.19437, section 2.2), and the metrics.

    A module has fewer labels than the model, by one or more at the end of each document, and the sums of both are
    divided by the step's weight, as in the report, which divides both by a sequence's length.
    """
    labels = sent(batch.labels, ahead[0].device)
    total, metrics = ahead[0].new_zeros((), dtype=torch.promote_types(ahead[0].dtype, torch.float32)), {}
    for places, (hidden, names) in enumerate(zip(ahead, mtp_metrics(len(ahead)), strict=True), start=1):
        behind = labels_behind(labels, places, batch.cu_seqlens)
        loss, nll = model.cross_entropy(hidden, behind, z_loss=0.0)
        total = total + loss * (weight / len(ahead))
        counted = (model.ranks.own(behind) != IGNORE_INDEX).sum()
        metrics |= dict(zip(names, (nll.detach(), counted), strict=True))
    return total, metrics


def sums_of_nothing(objective: Objective, model: Any) -> Sums:
    """What a rank contributes that has no part of the loss, because other stages of the pipeline follow its own."""
    config, zero = model.config, torch.zeros((), device=next(model.parameters()).device)
    shape = (len(config.expert_layers()), config.num_local_experts) if config.num_local_experts else (0, 0)
    named = dict.fromkeys(("loss", *objective.metrics), zero)
    return Sums(zero, zero, named | _named(zero.expand(shape), zero))


def add_up(parts: Sequence[Sums]) -> Sums:
    """The sum of what several micro-batches contribute, without gradients."""

    def total(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([tensor.detach() for tensor in tensors]).sum(0)

    metrics = {name: total([part.metrics[name] for part in parts]) for name in parts[0].metrics}
    return Sums(total([part.loss for part in parts]), total([part.weight for part in parts]), metrics)


def _listed(objective: Objective, sums: Sums) -> dict[str, torch.Tensor]:
    """The loss and the metrics of an objective, in the order in which it lists them."""
    found = {name: metric.detach() for name, metric in sums.metrics.items() if name != "loss"}
    if found.keys() != set(objective.metrics) or any(metric.ndim for metric in found.values()):
        given = ", ".join(f"{name} {tuple(metric.shape)}" for name, metric in found.items())
        raise RuntimeError(
            f"{type(objective).__name__} lists the metrics {', '.join(objective.metrics) or '(none)'}, scalars which "
            f"ranks add up in this order; it gave {given or 'none'}."
        )
    return {"loss": sums.metrics.get("loss", sums.loss).detach(), **{name: found[name] for name in objective.metrics}}


def _named(expert_load: torch.Tensor, dropped: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(ROUTER_METRICS, (expert_load, dropped), strict=True))
