"""One optimizer step. Read this first, then loop.py.

Every micro-batch gives sums and their gradients; the sums meet in one place, are divided once by the number of valid
labels, and the optimizer takes the step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from leyden.core.errors import UserError
from leyden.train.objective import LossSums, Objective
from leyden.train.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """What one step did, on the host.

    Attributes:
        loss: mean negative log-likelihood of a valid label, in nats.
        aux_loss: what the objective adds to it (balance, z-loss), per label.
        grad_norm: of the mean loss, before clipping.
        tokens: positions computed.
        labels: valid labels.
        load: [layers with experts, E], each expert's share of the assignments; rows sum to 1.
        dropped: share of assignments that capacity dropped.
        skipped: the loss or the gradient was not finite, and the weights are unchanged.
    """

    loss: float
    aux_loss: float
    grad_norm: float
    tokens: int
    labels: int
    load: list[list[float]]
    dropped: float
    skipped: bool


def train_step(
    state: TrainState, batches: Sequence[Any], objective: Objective, *, lr: float, clip_norm: float
) -> StepResult:
    """Take one step on the micro-batches ``batches`` and count it in ``state``.

    Args:
        state: updated in place.
        batches: at least one; all their labels weigh alike.
        objective: gives the sums of one micro-batch.
        lr: learning rate.
        clip_norm: a gradient of the mean loss longer than this is scaled down to it.

    Raises:
        UserError: not one label in all the micro-batches.
    """
    state.model.train()
    total = _sum(state, [_backward(state, batch, objective) for batch in batches])
    if not total.num_labels:
        raise UserError(
            f"step {state.step + 1}: none of its {int(total.num_tokens)} tokens has a label to learn from; "
            "check the labels of the data, or make the batch larger."
        )
    grad_norm = state.optimizer.grad_norm() / total.num_labels
    result = _result(total, grad_norm)
    if result.skipped:
        state.optimizer.discard()
    else:
        excess = (grad_norm / clip_norm).clamp_min(1.0)
        state.optimizer.step(lr, divisor=total.num_labels * excess)
    state.count(result.tokens, skipped=result.skipped)
    return result


def _backward(state: TrainState, batch: Any, objective: Objective) -> LossSums:
    """The sums of one micro-batch, their gradient left with the optimizer."""
    sums = objective(state.model, batch)
    sums.loss.backward()
    state.optimizer.accumulate()
    return sums


def _sum(state: TrainState, parts: Sequence[LossSums]) -> LossSums:
    """The sums over all micro-batches and ranks: the one place where contributions meet."""
    names = [field.name for field in fields(LossSums)]
    sums = [torch.stack([getattr(part, name).detach() for part in parts]).sum(0) for name in names]
    return LossSums(**dict(zip(names, state.team.sum(sums), strict=True)))


def _result(total: LossSums, grad_norm: torch.Tensor) -> StepResult:
    labels = int(total.num_labels)
    loss, norm = float(total.nll) / labels, float(grad_norm)
    return StepResult(
        loss=loss,
        aux_loss=float(total.loss - total.nll) / labels,
        grad_norm=norm,
        tokens=int(total.num_tokens),
        labels=labels,
        load=(total.load / labels).tolist(),
        dropped=float(total.dropped) / labels,
        skipped=not (math.isfinite(loss) and math.isfinite(norm)),
    )
