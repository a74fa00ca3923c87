"""Losses over pairs of answers, each a function of one margin; which margin, and with which settings, a table says.

The score of an answer y is its log-probability under the model that is trained, minus that under the reference model,
each summed over the tokens of the answer:

    s(y) = log pi(y) - log pi_ref(y)

or, of losses by length, that divided by the number of these tokens, |y|. The margin of a pair is z = s(chosen) -
s(rejected). Losses without a reference leave log pi_ref out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field, field_validator, model_validator
from torch.nn.functional import logsigmoid

from leyden.core.config import Config
from leyden.core.errors import suggest


def sigmoid(margin: torch.Tensor, *, beta: float) -> torch.Tensor:
    """-log sigma(beta z): direct preference optimisation (arXiv 2305.18290, equation 7)."""
    return -logsigmoid(beta * margin)


def sigmoid_beyond(margin: torch.Tensor, *, beta: float, gamma: float) -> torch.Tensor:
    """-log sigma(beta z - gamma): SimPO (arXiv 2405.14734, equation 6), which asks for a margin of gamma / beta."""
    return -logsigmoid(beta * margin - gamma)


def sigmoid_smoothed(margin: torch.Tensor, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """-(1 - e) log sigma(beta z) - e log sigma(-beta z): conservative DPO (Mitchell 2023, "A note on DPO with noisy
    preferences"), for preferences of which the share e is the wrong way round."""
    right, wrong = logsigmoid(beta * margin), logsigmoid(-beta * margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def squared(margin: torch.Tensor, *, beta: float) -> torch.Tensor:
    """(z - 1 / (2 beta))^2: IPO (arXiv 2310.12036, equation 17, whose tau is beta here)."""
    return (margin - 1 / (2 * beta)) ** 2


@dataclass(frozen=True)
class PreferenceLoss:
    """One way to learn from pairs.

    Attributes:
        of_margin: the loss of each pair, by its margin [P] and the settings; differentiable.
        defaults: the settings that it takes, with their defaults.
        by_length: whether log-probabilities are divided by the tokens of their answer.
        needs_reference: whether the log-probabilities of the reference model are subtracted.
    """

    of_margin: Callable[..., torch.Tensor]
    defaults: Mapping[str, float]
    by_length: bool = False
    needs_reference: bool = True


LOSSES: Mapping[str, PreferenceLoss] = {
    "dpo": PreferenceLoss(sigmoid, {"beta": 0.1}),
    "dpo_norm": PreferenceLoss(sigmoid, {"beta": 5.0}, by_length=True),
    "simpo": PreferenceLoss(sigmoid_beyond, {"beta": 2.0, "gamma": 1.0}, by_length=True, needs_reference=False),
    "ipo": PreferenceLoss(squared, {"beta": 0.1}, by_length=True),
    "cdpo": PreferenceLoss(sigmoid_smoothed, {"beta": 0.1, "label_smoothing": 0.1}),
}
"""By the name that a recipe gives it. ``dpo_norm`` is the length-normalised DPO of Tulu 3 (arXiv 2411.15124, section
5.1.2). The paper of IPO sums log-probabilities; dividing them by the length, as its authors later advised and TRL does,
is what makes one beta fit answers of all lengths."""


class PreferenceSettings(Config):
    """Which loss over pairs, and its settings; None: the default."""

    loss: str | None = None
    """A name in :data:`LOSSES`; None: ``"dpo"``."""
    beta: float | None = Field(default=None, gt=0)
    gamma: float | None = Field(default=None, ge=0)
    label_smoothing: float | None = Field(default=None, gt=0, lt=0.5)
    nll_weight: float | None = Field(default=None, gt=0)
    """How much the mean negative log-likelihood of each chosen answer's tokens adds to the loss of its pair, as in
    iterative reasoning preference optimisation (arXiv 2404.19733, equation 1); None: nothing."""

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, loss: str | None) -> str | None:
        if loss is not None and loss not in LOSSES:
            raise ValueError(f"must be one of {', '.join(LOSSES)}{suggest(loss, LOSSES)}")
        return loss

    @model_validator(mode="after")
    def _taken_by_the_loss(self) -> Self:
        for name in ("beta", "gamma", "label_smoothing"):
            if getattr(self, name) is not None and name not in self.of_pairs.defaults:
                takers = " or ".join(f"'{loss}'" for loss, one in LOSSES.items() if name in one.defaults)
                raise ValueError(f"{name} is for loss = {takers}, and loss is '{self.loss_name}'; leave it out")
        return self

    @property
    def loss_name(self) -> str:
        """The name of the loss."""
        return self.loss or "dpo"

    @property
    def of_pairs(self) -> PreferenceLoss:
        """The loss."""
        return LOSSES[self.loss_name]

    @property
    def settings_of_loss(self) -> dict[str, float]:
        """The settings that the loss takes."""
        given = {name: getattr(self, name) for name in self.of_pairs.defaults}
        return {name: self.of_pairs.defaults[name] if value is None else value for name, value in given.items()}
