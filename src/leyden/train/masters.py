"""Weights as an optimizer moves them: a wide copy of each where the model computes in less."""

from collections.abc import Mapping

import torch

from leyden.parallel import Weight


class MasterGroup:
    """Weights that are moved by one rule, which a subclass gives (:meth:`update`, :meth:`moments`).

    Args:
        weights: by name.
        device: where masters and moments are kept; None: with the model.

    Attributes:
        names: of the weights, in order; the lists below have one entry each.
        weights: the model's.
        masters: the same, float32 (float64 of a float64 model); a weight that is as wide, and there, is its own.
    """

    def __init__(self, weights: Mapping[str, Weight], device: torch.device | None) -> None:
        self.names = list(weights)
        self.weights = list(weights.values())
        self.masters = [_master(weight.local, device) for weight in self.weights]

    def update(
        self, gradients: list[torch.Tensor], lr: float, divisor: torch.Tensor, skip: torch.Tensor | None
    ) -> None:
        """Move the masters, in place.

        Args:
            gradients: sums, one a weight; the caller has no further use of them.
            lr: learning rate of the step.
            divisor: float32 scalar by which the sums are divided.
            skip: scalar bool; where it is true, nothing changes.
        """
        raise NotImplementedError

    def moments(self) -> Mapping[str, list[torch.Tensor]]:
        """What is remembered of each weight between steps, by a name of its kind."""
        raise NotImplementedError

    def tensors(self) -> dict[str, torch.Tensor]:
        """Moments and masters by the name of their kind and weight; of masters those that the model does not hold."""
        found: dict[str, torch.Tensor] = {}
        for i, name in enumerate(self.names):
            found |= {f"{kind}.{name}": tensors[i] for kind, tensors in self.moments().items()}
            if not _is_own_master(self.weights[i], self.masters[i]):
                found[f"master.{name}"] = self.masters[i]
        return found

    def take_gradients(self) -> list[torch.Tensor]:
        """The gradients of one backward in the masters' dtype, taken away from the parameters."""
        pairs = zip(self.weights, self.masters, strict=True)
        return [weight.take_gradient(master.dtype).to(master.device) for weight, master in pairs]

    def round_into_model(self) -> None:
        """Give the model the masters, rounded to its dtype."""
        both = zip(self.weights, self.masters, strict=True)
        pairs = [(weight.local, master) for weight, master in both if not _is_own_master(weight, master)]
        if pairs:
            parameters, masters = zip(*pairs, strict=True)
            torch._foreach_copy_(list(parameters), list(masters))  # pyright: ignore[reportPrivateImportUsage]


def _master(tensor: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    """``to`` copies where dtype or device change, and returns the parameter's own storage where they do not."""
    return tensor.to(device=device, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _is_own_master(weight: Weight, master: torch.Tensor) -> bool:
    return weight.parameter.dtype == master.dtype and weight.parameter.device == master.device
