"""The biases by which routers choose, moved against the load of experts and not by a gradient."""

from collections.abc import Mapping

import torch

from leyden.train.masters import MasterGroup


class BiasGroup(MasterGroup):
    """Biases of routers, moved by the rule of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2; arXiv 2408.15664).

    ``bias += rate * sign(mean load - load)``: an expert that was chosen more often than the mean of its layer falls,
    and one that was chosen less often rises. What stands in the place of their gradients is the load
    (:func:`leyden.model.balance.with_load`): how many tokens chose each expert, over all micro-batches and ranks of the
    step. These are whole numbers, which float32 adds up exactly below 2^24.
    """

    def update(
        self, gradients: list[torch.Tensor], lr: float, divisor: torch.Tensor, skip: torch.Tensor | None
    ) -> None:
        """``lr`` is the rate; the divisor does not matter."""
        if not lr:
            return
        for master, load in zip(self.masters, gradients, strict=True):
            change = lr * (load.mean() - load).sign()
            master.add_(change if skip is None else change.masked_fill(skip.to(change.device), 0))

    def moments(self) -> Mapping[str, list[torch.Tensor]]:
        return {}
