"""One optimizer step. Read this first, then loop.py.

Every micro-batch gives sums and their gradients; the sums of all micro-batches and ranks meet in one place, are divided
once by the number of valid labels, and the optimizer takes the step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from leyden.core.transfers import fetch
from leyden.train.model import PipelinedModel
from leyden.train.objective import LossSums, Objective
from leyden.train.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """What one step did, on the host. Where no token had a label, all means are NaN.

    Attributes:
        loss: mean negative log-likelihood of a valid label, in nats.
        aux_loss: what the objective adds to it (balance, z-loss), per label.
        grad_norm: of the mean loss, before clipping.
        tokens: positions computed.
        labels: valid labels.
        load: [layers with experts, E], each expert's share of the assignments; rows sum to 1.
        dropped: share of assignments that capacity dropped.
        skipped: the loss or the gradient was not finite, or no token had a label; the weights are unchanged.
        stop: a rank was asked to stop by the time it had computed its micro-batches; the same on all ranks.
    """

    loss: float
    aux_loss: float
    grad_norm: float
    tokens: int
    labels: int
    load: list[list[float]]
    dropped: float
    skipped: bool
    stop: bool = False


def train_step(
    state: TrainState,
    batches: Sequence[Any],
    objective: Objective,
    *,
    lr: float,
    clip_norm: float,
    stop: Callable[[], bool] = lambda: False,
) -> StepResult:
    """Take one step on the micro-batches ``batches`` and count it in ``state``.

    Args:
        state: updated in place, by all ranks of its team at the same time.
        batches: at least one; of several data ranks, this one's shares. All their labels weigh alike.
        objective: gives the sums of one micro-batch.
        lr: learning rate.
        clip_norm: a gradient of the mean loss longer than this is scaled down to it.
        stop: whether this rank was asked to stop; the answer goes to all ranks with the step's sums.
    """
    state.model.train()
    if state.pipeline is not None:
        parts = _through_pipeline(state, state.pipeline, batches, objective)
    else:
        parts = [_backward(state, batch, objective, number) for number, batch in enumerate(batches)]
    state.team.at("the exchange of sums", state.step + 1)
    total, votes = _sum(state, parts, stop())
    grad_norm = state.optimizer.grad_norm() / total.num_labels
    # Where the weights are, not here: the host looks when all that the step computes is on its way.
    finite = total.nll.isfinite() & grad_norm.isfinite() & (total.num_labels > 0)
    excess = (grad_norm / clip_norm).clamp_min(1.0)
    state.optimizer.step(lr, divisor=total.num_labels * excess, skip=~finite)
    result = _result(total, grad_norm, finite, votes)
    state.count(result.tokens, skipped=result.skipped)
    return result


def _backward(state: TrainState, batch: Any, objective: Objective, number: int) -> LossSums:
    """The sums of one micro-batch, their gradient left with the optimizer."""
    state.team.at("forward", state.step + 1, number)
    sums = objective(state.model, batch)
    state.team.at("backward", state.step + 1, number)
    sums.loss.backward()
    state.optimizer.accumulate()
    return sums


def _through_pipeline(
    state: TrainState, pipeline: PipelinedModel, batches: Sequence[Any], objective: Objective
) -> list[LossSums]:
    """The same of all micro-batches, which are in the stages of a pipeline at once."""
    state.team.at("the pipeline", state.step + 1)
    sums = pipeline.run(batches, objective)
    state.optimizer.accumulate()
    return sums


def _sum(state: TrainState, parts: Sequence[LossSums], stop: bool) -> tuple[LossSums, torch.Tensor]:
    """The sums over all micro-batches and ranks, the one place where contributions meet; and how many are to stop."""
    names = [field.name for field in fields(LossSums)]
    sums = [torch.stack([getattr(part, name).detach() for part in parts]).sum(0) for name in names]
    *total, votes = state.team.sum([*sums, torch.full((), int(stop), device=sums[0].device)])
    return LossSums(**dict(zip(names, total, strict=True))), votes


def _result(total: LossSums, grad_norm: torch.Tensor, finite: torch.Tensor, votes: torch.Tensor) -> StepResult:
    """On the host, for which it waits; once a step."""
    *sums, norm, went, stops = fetch([*vars(total).values(), grad_norm, finite, votes])
    here = LossSums(*sums)
    labels = int(here.num_labels)
    divisor = labels or math.nan
    return StepResult(
        loss=float(here.nll) / divisor,
        aux_loss=float(here.loss - here.nll) / divisor,
        grad_norm=float(norm),
        tokens=int(here.num_tokens),
        labels=labels,
        load=(here.load / divisor).tolist(),
        dropped=float(here.dropped) / divisor,
        skipped=not went,
        stop=bool(stops),
    )
