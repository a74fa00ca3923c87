"""AdamW (arXiv 1711.05101) on master weights."""

from collections.abc import Mapping

import torch
from torch.optim.adamw import adamw

from leyden.parallel import Weight
from leyden.train.masters import MasterGroup


class AdamGroup(MasterGroup):
    """Weights that AdamW moves, with its two moments of each and a count of steps.

    Moments in bfloat16 (DeepSeek-V3, arXiv 2412.19437, section 3.3.3) are widened one weight at a time, moved as
    float32 ones would be, and rounded.

    Args:
        weights, device: as of :class:`MasterGroup`.
        weight_decay: of all of them.
        lr_factor: what the learning rate is multiplied by.
        moments: the dtype of both; None: that of the masters.
        betas, eps: AdamW's constants.
    """

    def __init__(
        self,
        weights: Mapping[str, Weight],
        device: torch.device | None,
        *,
        weight_decay: float,
        lr_factor: float,
        moments: torch.dtype | None,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(weights, device)
        self.exp_avgs = [torch.zeros_like(m, dtype=moments) for m in self.masters]
        self.exp_avg_sqs = [torch.zeros_like(m, dtype=moments) for m in self.masters]
        self.steps = [torch.zeros((), dtype=torch.float32, device=m.device) for m in self.masters]
        """Float32 scalars, all equal; the fused kernel wants one a parameter."""
        self._weight_decay, self._lr_factor, self._betas, self._eps = weight_decay, lr_factor, betas, eps
        self._narrow = moments is not None

    def update(
        self, gradients: list[torch.Tensor], lr: float, divisor: torch.Tensor, skip: torch.Tensor | None
    ) -> None:
        """The division happens inside the fused kernel, without a pass of its own."""
        if not self._narrow:
            self._move(self.masters, gradients, self.exp_avgs, self.exp_avg_sqs, self.steps, lr, divisor, skip)
            return
        each = zip(self.masters, gradients, self.exp_avgs, self.exp_avg_sqs, self.steps, strict=True)
        for master, gradient, exp_avg, exp_avg_sq, step in each:
            wide = exp_avg.to(master.dtype), exp_avg_sq.to(master.dtype)
            self._move([master], [gradient], [wide[0]], [wide[1]], [step], lr, divisor, skip)
            exp_avg.copy_(wide[0])
            exp_avg_sq.copy_(wide[1])

    def _move(
        self,
        masters: list[torch.Tensor],
        gradients: list[torch.Tensor],
        exp_avgs: list[torch.Tensor],
        exp_avg_sqs: list[torch.Tensor],
        steps: list[torch.Tensor],
        lr: float,
        divisor: torch.Tensor,
        skip: torch.Tensor | None,
    ) -> None:
        adamw(
            masters,
            gradients,
            exp_avgs,
            exp_avg_sqs,
            [],
            steps,
            fused=True,
            grad_scale=divisor,
            found_inf=None if skip is None else skip.to(torch.float32),
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=lr * self._lr_factor,
            weight_decay=self._weight_decay,
            eps=self._eps,
            maximize=False,
        )

    def moments(self) -> Mapping[str, list[torch.Tensor]]:
        return {"exp_avg": self.exp_avgs, "exp_avg_sq": self.exp_avg_sqs}
