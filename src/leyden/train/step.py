"""One optimizer step. Read this first, then loop.py.

Every micro-batch gives sums and their gradients; the sums of all micro-batches and ranks meet in one place, are divided
once by their weight, and the optimizer takes the step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leyden.core.transfers import fetch
from leyden.parallel.objective import Objective, Row, Sums, add_up, mtp_metrics, sums_of_row
from leyden.train.model import PipelinedModel
from leyden.train.noise_scale import NoiseSample, noise_sample
from leyden.train.spikes import StepLimits
from leyden.train.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """What one step did, on the host and the same on all ranks. Where the weight is zero, all means are NaN.

    Attributes:
        metrics: means for each unit of weight. ``loss`` is without, and ``aux_loss`` is, what is minimised besides
            (balance, z-loss, multi-token prediction); then the objective's metrics, those of the modules for
            multi-token prediction, each over its own labels, and :data:`leyden.parallel.objective.ROUTER_METRICS`.
        weight: what the sums were divided by; how many labels, in pre-training.
        grad_norm: of the gradient of the mean loss, before clipping.
        tokens: positions computed.
        skipped: the loss or the gradient was not finite, the weight zero, or it was a spike that was to be skipped; the
            weights are unchanged.
        stop: a rank was asked to stop by the time it had computed its micro-batches.
        spiked: the loss or the gradient norm was above its limit.
        noise: of the gradient, where it was measured and there was something to measure.
    """

    metrics: dict[str, Any]
    weight: float
    grad_norm: float
    tokens: int
    skipped: bool
    stop: bool = False
    spiked: bool = False
    noise: NoiseSample | None = None

    @property
    def loss(self) -> float:
        """The mean loss without auxiliary terms."""
        return self.metrics["loss"]


@dataclass(frozen=True)
class _Total:
    """The sums of all micro-batches and ranks; how many positions they had, and how many ranks are to stop.

    ``weights`` [micro-batches] are those of each, over all ranks, and ``norms`` those of the gradients of their sums;
    both are empty where they were not asked for.
    """

    sums: Sums
    tokens: torch.Tensor
    votes: torch.Tensor
    weights: torch.Tensor
    norms: torch.Tensor


_NO_LIMITS = StepLimits()


def train_step(
    state: TrainState,
    batches: Sequence[Row],
    objective: Objective,
    *,
    lr: float,
    clip_norm: float,
    expert_bias_rate: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
    limits: StepLimits = _NO_LIMITS,
    measure_noise: bool = False,
    stage_steps: int = 1,
    mtp_weight: float = 0.0,
) -> StepResult:
    """Take one step on the micro-batches ``batches`` and count it in ``state``.

    Args:
        state: updated in place, by all ranks of its group at the same time.
        batches: at least one; of several data ranks, this one's shares. A unit of weight counts alike in
            all of them.
        objective: gives the sums of one micro-batch.
        lr: learning rate.
        expert_bias_rate: by how much the biases of routers move against their load.
        clip_norm: a gradient of the mean loss longer than this is scaled down to it.
        stop: whether this rank was asked to stop; the answer goes to all ranks with the step's sums.
        limits: of the mean loss and the gradient norm.
        measure_noise: estimate the noise of the gradient from its micro-batches, which takes one more reading of the
            gradients of each, and changes nothing. A pipeline, whose micro-batches share their gradients, cannot.
        stage_steps: how many steps of its stage it stands for.
        mtp_weight: of the losses of modules for multi-token prediction (:func:`sums_of_row`).
    """
    state.model.train()
    norms: list[torch.Tensor] = []
    if state.pipeline is not None:
        parts = _through_pipeline(state, state.pipeline, batches, objective)
    else:
        measured = norms if measure_noise else None
        parts = [
            _backward(state, batch, objective, number, measured, mtp_weight) for number, batch in enumerate(batches)
        ]
    state.rank_group.at("the exchange of sums", state.step + 1)
    total = _total(state, parts, batches, norms, stop())
    weight = total.sums.weight
    grad_norm = state.optimizer.grad_norm() / weight
    # Where the weights are, not here: the host looks when all that the step computes is on its way.
    finite = total.sums.loss.isfinite() & grad_norm.isfinite() & (weight > 0)
    spiked = finite & ((total.sums.metrics["loss"] > limits.loss * weight) | (grad_norm > limits.grad_norm))
    skip = ~finite | spiked if limits.skip else ~finite
    excess = (grad_norm / clip_norm).clamp_min(1.0)
    state.optimizer.step(lr, divisor=weight * excess, skip=skip, expert_bias_rate=expert_bias_rate)
    result = _result(total, grad_norm, skip, spiked)
    state.count(result.tokens, skipped=result.skipped, stage_steps=stage_steps)
    return result


def _backward(
    state: TrainState,
    batch: Row,
    objective: Objective,
    number: int,
    norms: list[torch.Tensor] | None,
    mtp_weight: float,
) -> Sums:
    """The sums of one micro-batch, their gradient left with the optimizer; ``norms`` gets that of the gradient."""
    state.rank_group.at("forward", state.step + 1, number)
    sums = sums_of_row(objective, state.model, batch, mtp_weight=mtp_weight)
    state.rank_group.at("backward", state.step + 1, number)
    sums.loss.backward()
    norm = state.optimizer.accumulate(measure=norms is not None)
    if norms is not None and norm is not None:
        norms.append(norm)
    return sums


def _through_pipeline(
    state: TrainState, pipeline: PipelinedModel, batches: Sequence[Row], objective: Objective
) -> list[Sums]:
    """The same of all micro-batches, which are in the stages of a pipeline at once."""
    state.rank_group.at("the pipeline", state.step + 1)
    sums = pipeline.run(batches, objective)
    state.optimizer.accumulate()
    return sums


def _total(
    state: TrainState, parts: Sequence[Sums], batches: Sequence[Row], norms: Sequence[torch.Tensor], stop: bool
) -> _Total:
    """Over all micro-batches and ranks: the one place where contributions meet."""
    sums, device = add_up(parts), parts[0].loss.device
    positions = sum(batch.tokens.numel() for batch in batches) if state.rank_group.counts_rows else 0
    counts = [torch.full((), count, device=device) for count in (positions, int(stop))]
    each = torch.stack([part.weight for part in parts]) if norms else torch.empty(0, device=device)
    loss, weight, *metrics, tokens, votes, weights = state.rank_group.sum(
        [sums.loss, sums.weight, *sums.metrics.values(), *counts, each]
    )
    of_norms = torch.stack(list(norms)) if norms else torch.empty(0, device=device)
    return _Total(Sums(loss, weight, dict(zip(sums.metrics, metrics, strict=True))), tokens, votes, weights, of_norms)


def _result(total: _Total, grad_norm: torch.Tensor, skip: torch.Tensor, spiked: torch.Tensor) -> StepResult:
    """On the host, for which it waits; once a step."""
    sums = total.sums
    scalars = [sums.loss, sums.weight, grad_norm, skip, spiked, total.tokens, total.votes]
    here = fetch([*scalars, *sums.metrics.values(), total.weights, total.norms])
    loss, weight, norm, skipped, spike, tokens, votes = (x.item() for x in here[: len(scalars)])
    *named, weights, norms = here[len(scalars) :]
    divisor = weight or math.nan
    means = [(x.double() / divisor).tolist() for x in named]
    metrics = _over_own_labels(dict(zip(sums.metrics, means, strict=True)))
    return StepResult(
        metrics={"loss": metrics["loss"], "aux_loss": (loss - named[0].item()) / divisor, **metrics},
        weight=float(weight),
        grad_norm=norm,
        tokens=int(tokens),
        skipped=bool(skipped),
        stop=bool(votes),
        spiked=bool(spike),
        noise=noise_sample(norms.tolist(), weights.tolist(), norm * weight),
    )


def _over_own_labels(means: dict[str, Any]) -> dict[str, Any]:
    """The losses of modules for multi-token prediction as means over their own labels, which are then left out."""
    for loss, labels in mtp_metrics(len(means)):
        if loss not in means:
            break
        count = means.pop(labels)
        means[loss] = means[loss] / count if count else math.nan
    return means
