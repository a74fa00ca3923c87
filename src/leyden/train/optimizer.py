"""AdamW on float32 master weights, whatever dtype the model computes in.

A bfloat16 weight near 1 moves in steps of 1/128, more than most updates: the optimizer therefore keeps each narrow
parameter a second time in float32, updates that copy, and rounds it into the model after every step. A parameter that
is float32 already, and where the optimizer is, is its own master. Gradients are summed over micro-batches in the
master's dtype. A rank of several keeps all of this for its part of each weight alone.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import nn
from torch.optim.adamw import adamw

from leyden.core.config import Config
from leyden.parallel import Weight, Weights


class AdamWConfig(Config):
    """The constants of AdamW; the defaults are MiniMax-01's (the paper does not print eps)."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    """For parameters of two dims or more; norms and other vectors do not decay."""


@dataclass(frozen=True)
class _Group:
    """Parameters that share a weight decay, with what the optimizer keeps of each."""

    names: list[str]
    weights: list[Weight]
    masters: list[torch.Tensor]
    exp_avgs: list[torch.Tensor]
    exp_avg_sqs: list[torch.Tensor]
    steps: list[torch.Tensor]
    """Float32 scalars, all equal; the fused kernel wants one a parameter."""
    weight_decay: float


class MasterAdamW:
    """AdamW (arXiv 1711.05101) over the trainable parameters of a model.

    One step is: ``accumulate()`` after the backward of each micro-batch, ``grad_norm()``, then ``step()``.

    Args:
        model: a model, or what a rank holds of one.
        config: the constants.
        device: where masters, moments and sums of gradients are kept and the step is taken: the CPU, to leave a GPU's
            memory to the model. None: with the model.
    """

    def __init__(
        self, model: nn.Module | Weights, config: AdamWConfig | None = None, device: torch.device | None = None
    ) -> None:
        self.config = config or AdamWConfig()
        self.weights = model if isinstance(model, Weights) else Weights.alone(model)
        matrices = {name: w for name, w in self.weights.items() if w.parameter.ndim >= 2}
        vectors = {name: w for name, w in self.weights.items() if w.parameter.ndim < 2}
        decay = self.config.weight_decay
        self._groups = [_group(matrices, decay, device), _group(vectors, 0.0, device)]
        self._gradients: list[list[torch.Tensor]] | None = None

    def accumulate(self, *, measure: bool = False) -> torch.Tensor | None:
        """Add every parameter's ``grad`` to its float32 sum and clear it; no gradient counts as zero.

        Args:
            measure: return the Euclidean norm of what arrives, over all ranks: one more reading of the gradients. All
                ranks then call this together.
        """
        arrived = [_take_gradients(group) for group in self._groups]
        norm = self._norm_of(arrived) if measure else None
        if self._gradients is None:
            self._gradients = arrived
            return norm
        for sums, gradients in zip(self._gradients, arrived, strict=True):
            for total, gradient in zip(sums, gradients, strict=True):
                total.add_(gradient)
        return norm

    def grad_norm(self) -> torch.Tensor:
        """The Euclidean norm of all accumulated gradients together, a float32 scalar (float64 for a float64 model).

        Where ranks share the model, their gradients are first completed, so it is called once a step, by all of them.
        """
        named = self._named(self._accumulated())
        self.weights.sum_gradients(named)
        return self.weights.norm(named)

    def step(self, lr: float, divisor: torch.Tensor, skip: torch.Tensor | None = None) -> None:
        """Update masters and model with the accumulated gradients, each divided by ``divisor``, and forget them.

        Args:
            lr: learning rate.
            divisor: scalar; the division happens inside the fused kernel, without a pass of its own.
            skip: scalar bool; where it is true, the gradients are forgotten and nothing else changes.
        """
        divisor = divisor.to(torch.float32)
        found_inf = None if skip is None else skip.to(torch.float32)
        for group, gradients in zip(self._groups, self._accumulated(), strict=True):
            if not group.names:
                continue
            adamw(
                group.masters,
                gradients,
                group.exp_avgs,
                group.exp_avg_sqs,
                [],
                group.steps,
                fused=True,
                grad_scale=divisor,
                found_inf=found_inf,
                amsgrad=False,
                beta1=self.config.beta1,
                beta2=self.config.beta2,
                lr=lr,
                weight_decay=group.weight_decay,
                eps=self.config.eps,
                maximize=False,
            )
            _round_into_model(group)
        self._gradients = None

    @property
    def num_steps(self) -> int:
        """How many updates were made; Adam's bias correction depends on it."""
        return int(next(step for group in self._groups for step in group.steps))

    @num_steps.setter
    def num_steps(self, value: int) -> None:
        for group in self._groups:
            for step in group.steps:
                step.fill_(value)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything but :attr:`num_steps` that a resumed run needs, by name; writing into them restores it."""
        found: dict[str, torch.Tensor] = {}
        for group in self._groups:
            for i, name in enumerate(group.names):
                found[f"exp_avg.{name}"] = group.exp_avgs[i]
                found[f"exp_avg_sq.{name}"] = group.exp_avg_sqs[i]
                if not _is_own_master(group.weights[i], group.masters[i]):
                    found[f"master.{name}"] = group.masters[i]
        return found

    def round_into_model(self) -> None:
        """Give the model the masters, rounded to its dtype; for whoever has written into the masters."""
        for group in self._groups:
            _round_into_model(group)

    def masters(self) -> dict[str, torch.Tensor]:
        """The float32 weights, by the name of their parameter."""
        return {name: master for group in self._groups for name, master in zip(group.names, group.masters, strict=True)}

    def _norm_of(self, gradients: list[list[torch.Tensor]]) -> torch.Tensor:
        """Of gradients that stay as they are; those that ranks have yet to complete, a small part, are copied."""
        named = self._named(gradients)
        incomplete = {name: gradient.clone() for name, gradient in named.items() if self.weights[name].group}
        self.weights.sum_gradients(incomplete)
        return self.weights.norm(named | incomplete)

    def _named(self, gradients: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        pairs = zip(self._groups, gradients, strict=True)
        return {name: one for group, own in pairs for name, one in zip(group.names, own, strict=True)}

    def _accumulated(self) -> list[list[torch.Tensor]]:
        if self._gradients is None:
            raise RuntimeError("no gradients: call accumulate() after a backward first.")
        return self._gradients


def _group(named: dict[str, Weight], weight_decay: float, device: torch.device | None) -> _Group:
    masters = [_master(weight.local, device) for weight in named.values()]
    return _Group(
        names=list(named),
        weights=list(named.values()),
        masters=masters,
        exp_avgs=[torch.zeros_like(m) for m in masters],
        exp_avg_sqs=[torch.zeros_like(m) for m in masters],
        steps=[torch.zeros((), dtype=torch.float32, device=m.device) for m in masters],
        weight_decay=weight_decay,
    )


def _master(tensor: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    """``to`` copies where dtype or device change, and returns the parameter's own storage where they do not."""
    return tensor.to(device=device, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _is_own_master(weight: Weight, master: torch.Tensor) -> bool:
    return weight.parameter.dtype == master.dtype and weight.parameter.device == master.device


def _take_gradients(group: _Group) -> list[torch.Tensor]:
    """The gradients of one backward in the masters' dtype, taken away from the parameters."""
    taken = [weight.take_gradient(master.dtype) for weight, master in zip(group.weights, group.masters, strict=True)]
    return [gradient.to(master.device) for gradient, master in zip(taken, group.masters, strict=True)]


def _round_into_model(group: _Group) -> None:
    pairs = [(w.local, m) for w, m in zip(group.weights, group.masters, strict=True) if not _is_own_master(w, m)]
    if pairs:
        parameters, masters = zip(*pairs, strict=True)
        torch._foreach_copy_(list(parameters), list(masters))  # pyright: ignore[reportPrivateImportUsage]
