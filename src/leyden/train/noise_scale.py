"""The gradient noise scale, measured while a model is trained (arXiv 1812.06162, appendix A.1).

It is the batch size at which the noise of the gradient is as large as the gradient: ``tr(Sigma) / |G|^2``, with G the
mean gradient over all data and Sigma the covariance of the gradient of one unit of weight (a label, in pre-training).
Both are estimated from norms of gradients at two batch sizes: those of the micro-batches of a step, and that of the
step. The two estimates are unbiased and their quotient is not, so each is averaged over steps before they are divided.

The labels of a micro-batch share documents, and those of a document resemble each other. The covariance is that of
whole micro-batches, for one label of theirs; with longer micro-batches of the same documents it is the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_DECAY = 0.98
"""Of the running averages, for each measurement: they reach about 50 of them back."""


@dataclass(frozen=True)
class NoiseSample:
    """What one step says.

    Attributes:
        trace: unbiased for tr(Sigma), of one unit of weight.
        square: unbiased for |G|^2; it may be negative where the noise is large.
    """

    trace: float
    square: float


def noise_sample(norms: Sequence[float], weights: Sequence[float], norm: float) -> NoiseSample | None:
    """The estimates from one step.

    With S_i the summed gradient of micro-batch i over its weight w_i, S their sum and W the sum of the n weights,
    E |S_i|^2 / w_i = w_i |G|^2 + tr(Sigma) and E |S|^2 / W = W |G|^2 + tr(Sigma); the difference of the first, summed
    over i, and the second is (n - 1) tr(Sigma). With equal weights this is equation A.2 of the paper.

    Args:
        norms: |S_i| of each micro-batch.
        weights: w_i of each; those without weight say nothing.
        norm: |S|.

    Returns:
        None where fewer than two micro-batches have weight, or something is not finite.
    """
    parts = [(square * square / weight, weight) for square, weight in zip(norms, weights, strict=True) if weight > 0]
    if len(parts) < 2:
        return None
    total = math.fsum(weight for _, weight in parts)
    trace = (math.fsum(part for part, _ in parts) - norm * norm / total) / (len(parts) - 1)
    square = (norm / total) ** 2 - trace / total
    return NoiseSample(trace, square) if math.isfinite(trace) and math.isfinite(square) else None


class NoiseScale:
    """Running averages of the two estimates, and of the loss of the same steps."""

    def __init__(self) -> None:
        self._trace = self._square = self._loss = self._share = 0.0

    def add(self, sample: NoiseSample, loss: float) -> None:
        """Take one step's estimates in, and its mean loss."""
        self._trace += (1 - _DECAY) * (sample.trace - self._trace)
        self._square += (1 - _DECAY) * (sample.square - self._square)
        self._loss += (1 - _DECAY) * (loss - self._loss)
        self._share += (1 - _DECAY) * (1 - self._share)

    @property
    def value(self) -> float | None:
        """The noise scale in units of weight; None while an average is not positive, which says nothing yet."""
        return self._trace / self._square if min(self._trace, self._square) > 0 else None

    @property
    def loss(self) -> float | None:
        """The average loss of the steps that it is of; None before the first."""
        return self._loss / self._share if self._share else None

    def record(self, sample: NoiseSample) -> dict[str, float | None]:
        """What a line of metrics says of it, and of the step's own estimates."""
        return {
            "noise_scale": self.value,
            "noise_loss": self.loss,
            "gradient_variance": sample.trace,
            "gradient_square": sample.square,
        }

    def state_dict(self) -> dict[str, Any]:
        """The averages, as JSON values."""
        return {"trace": self._trace, "square": self._square, "loss": self._loss, "share": self._share}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._trace, self._square = state["trace"], state["square"]
        self._loss, self._share = state["loss"], state["share"]
