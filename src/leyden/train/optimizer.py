"""AdamW, and Muon beside it, on float32 master weights, whatever dtype the model computes in.

A bfloat16 weight near 1 moves in steps of 1/128, more than most updates: the optimizer therefore keeps each narrow
parameter a second time in float32, updates that copy, and rounds it into the model after every step. A parameter that
is float32 already, and where the optimizer is, is its own master. Gradients are summed over micro-batches in the
master's dtype. A rank of several keeps all of this for its part of each weight alone.
"""

from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from leyden.core.config import Config
from leyden.model import ModelConfig
from leyden.model.matrices import Fused, hidden_matrices
from leyden.parallel import Weight, Weights
from leyden.parallel.weights import has_load
from leyden.train.adam import AdamGroup
from leyden.train.balance import BiasGroup
from leyden.train.masters import MasterGroup
from leyden.train.muon import MuonConfig, MuonGroup

_BFLOAT16_STEP = 2.0**-8
"""Half of the largest distance between two neighbours, as a share of them: a smaller change is rounded away."""


class AdamWConfig(Config):
    """The constants of AdamW; the defaults are MiniMax-01's (the paper does not print eps)."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    """For parameters of two dims or more; norms and other vectors do not decay."""
    decay_embeddings: bool = True
    """Whether the embedding decays too; OLMo 2's does not (arXiv 2501.00656, section 3.2)."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """The dtype in which AdamW's two moments are kept."""
    muon: MuonConfig | None = None
    """A table: Muon moves the matrices of the layers, and AdamW the rest. None: AdamW moves all."""

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.moments == "bfloat16" and max(self.beta1, self.beta2) > 1 - _BFLOAT16_STEP:
            raise ValueError(
                f"moments in bfloat16 never fall with betas of {self.beta1} and {self.beta2}: a share of less than "
                f"{_BFLOAT16_STEP} is rounded away; take betas of at most {1 - _BFLOAT16_STEP:.3f}, or float32"
            )
        return self


class MasterAdamW:
    """AdamW (arXiv 1711.05101), and where the configuration says so Muon, over the trainable parameters of a model.

    One step is: ``accumulate()`` after the backward of each micro-batch, ``grad_norm()``, then ``step()``.

    Args:
        model: a model, or what a rank holds of one; of several ranks, all make this together.
        config: the constants.
        device: where masters, moments and sums of gradients are kept and the step is taken: the CPU, to leave a GPU's
            memory to the model. None: with the model.
        shape: of the whole model; only Muon asks for it.
        rates: by name, what the learning rate is multiplied by; 1 where there is none. What weights lose by decay in
            a step does not change with it.
    """

    def __init__(
        self,
        model: nn.Module | Weights,
        config: AdamWConfig | None = None,
        device: torch.device | None = None,
        shape: ModelConfig | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.config = config or AdamWConfig()
        self.weights = model if isinstance(model, Weights) else Weights.alone(model)
        maps, rates = self._maps(shape), rates or {}
        groups: list[MasterGroup] = [
            self._adam_group(named, decay, rate, device)
            for (decay, rate), named in self._by_decay_and_rate(maps, rates).items()
        ]
        if self.config.muon is not None:
            (rate,) = {rates.get(name, 1.0) for name in maps}  # they are weights of one kind
            how = self.config.muon.model_copy(update={"lr_factor": rate * self.config.muon.lr_factor})
            decay = self.config.weight_decay / rate
            groups.append(MuonGroup(self.weights, maps, device, config=how, weight_decay=decay))
        biases = {name: weight for name, weight in self.weights.items() if has_load(name)}
        self._groups = [*groups, BiasGroup(biases, device)]
        self._gradients: list[list[torch.Tensor]] | None = None

    def _maps(self, shape: ModelConfig | None) -> Mapping[str, Fused]:
        """What Muon moves."""
        if self.config.muon is None:
            return {}
        if shape is None:
            raise ValueError("Muon is told the model's shape, by which it knows what is fused in a weight.")
        return hidden_matrices({name: weight.part.shape for name, weight in self.weights.items()}, shape)

    def _by_decay_and_rate(
        self, maps: Mapping[str, Fused], rates: Mapping[str, float]
    ) -> dict[tuple[float, float], dict[str, Weight]]:
        """What AdamW moves, by weight decay and by the factor of the learning rate."""
        found: dict[tuple[float, float], dict[str, Weight]] = {}
        for name, weight in self.weights.items():
            decays = weight.parameter.ndim >= 2 and (self.config.decay_embeddings or name != "embed_tokens.weight")
            if name not in maps and not has_load(name):
                kind = self.config.weight_decay if decays else 0.0, rates.get(name, 1.0)
                found.setdefault(kind, {})[name] = weight
        return found

    def _adam_group(
        self, weights: dict[str, Weight], decay: float, rate: float, device: torch.device | None
    ) -> AdamGroup:
        config = self.config
        return AdamGroup(
            weights,
            device,
            weight_decay=decay / rate,
            lr_factor=rate,
            moments=torch.bfloat16 if config.moments == "bfloat16" else None,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
        )

    def accumulate(self, *, measure: bool = False) -> torch.Tensor | None:
        """Add every parameter's ``grad`` to its float32 sum and clear it; no gradient counts as zero.

        Args:
            measure: return the Euclidean norm of what arrives, over all ranks: one more reading of the gradients. All
                ranks then call this together.
        """
        arrived = [group.take_gradients() for group in self._groups]
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

    def step(
        self, lr: float, divisor: torch.Tensor, skip: torch.Tensor | None = None, *, expert_bias_rate: float = 0.0
    ) -> None:
        """Update masters and model with the accumulated gradients, each divided by ``divisor``, and forget them.

        Args:
            lr: learning rate.
            divisor: scalar.
            skip: scalar bool; where it is true, the gradients are forgotten and nothing else changes.
            expert_bias_rate: by how much the biases of routers move (:class:`leyden.train.balance.BiasGroup`).
        """
        divisor = divisor.to(torch.float32)
        for group, gradients in zip(self._groups, self._accumulated(), strict=True):
            if group.names:
                group.update(gradients, expert_bias_rate if isinstance(group, BiasGroup) else lr, divisor, skip)
                group.round_into_model()
        self._gradients = None

    @property
    def num_steps(self) -> int:
        """How many updates were made; Adam's bias correction depends on it."""
        return int(next(step for group in self._adam_groups for step in group.steps))

    @num_steps.setter
    def num_steps(self, value: int) -> None:
        for group in self._adam_groups:
            for step in group.steps:
                step.fill_(value)

    @property
    def _adam_groups(self) -> list[AdamGroup]:
        return [group for group in self._groups if isinstance(group, AdamGroup)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything but :attr:`num_steps` that a resumed run needs, by name; writing into them restores it."""
        return {name: tensor for group in self._groups for name, tensor in group.tensors().items()}

    def round_into_model(self) -> None:
        """Give the model the masters, rounded to its dtype; for whoever has written into the masters."""
        for group in self._groups:
            group.round_into_model()

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
