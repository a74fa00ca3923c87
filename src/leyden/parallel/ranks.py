"""The ranks beside an attached model, as the model sees them (:class:`leyden.model.Ranks`)."""

import torch
import torch.distributed as dist

from leyden.model import ModelConfig, Ranks, RowPart
from leyden.parallel.collectives import gather_rows, sum_over
from leyden.parallel.mesh import Mesh


class StageRanks(Ranks):
    """The ranks of a pipeline stage: context ranks divide a row, tensor ranks each part of it once more."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.divide_tokens = mesh.plan.tp > 1

    def part(self, num_tokens: int, cu_seqlens: torch.Tensor | None) -> RowPart | None:
        """The context rank's tokens of a row; None where there is one context rank.

        The tensor ranks divide each part evenly, so the row's length must be a multiple of their number; parts may
        be unequal.
        """
        tp, cp = self._mesh.plan.tp, self._mesh.plan.cp
        if num_tokens % tp:
            raise RuntimeError(f"{tp} tensor ranks cannot divide a row of {num_tokens} tokens evenly.")
        if cp == 1:
            return None
        bounds = tuple(num_tokens // tp * index // cp * tp for index in range(cp + 1))
        documents = (0, num_tokens) if cu_seqlens is None else tuple(cu_seqlens.tolist())
        return RowPart(bounds, self._mesh.at["cp"], documents)

    def cut(self, row: torch.Tensor) -> torch.Tensor:
        """The context rank's part of [1, T]."""
        part = self.part(row.shape[1], None)
        return row if part is None else row[:, part.start : part.stop]

    def own(self, row: torch.Tensor) -> torch.Tensor:
        """The tensor rank's share of its context rank's part of [1, T]."""
        return self.cut(row).chunk(self._mesh.plan.tp, dim=1)[self._mesh.at["tp"]]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all ranks of the stage."""
        group = self._mesh.groups["stage"]
        if group is None:
            return values
        total = values.detach().clone()
        dist.all_reduce(total, group=group)
        return total

    def row_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over tensor ranks, then over context ranks."""
        return sum_over(sum_over(values, self._mesh.groups["tp"]), self._mesh.groups["cp"])

    def once(self, values: torch.Tensor) -> torch.Tensor:
        """On the first context rank's first tensor rank."""
        return values if self._mesh.at["cp"] == self._mesh.at["tp"] == 0 else values * 0

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """From the tensor ranks, which have as many tokens each."""
        group = self._mesh.groups["tp"]
        return x if group is None else gather_rows(x, 1, group)

    def held(self, config: ModelConfig) -> ModelConfig:
        """The tensor rank's heads."""
        tp = self._mesh.plan.tp
        heads = {name: getattr(config, name) // tp for name in ("num_attention_heads", "num_key_value_heads")}
        return config.model_copy(update=heads)
