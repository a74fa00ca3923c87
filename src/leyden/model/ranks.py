"""The seam between a model and the processes that share it; a model alone on one process has the default.

A model that several ranks compute takes the same packed row on every rank that shares it, and each rank computes its
part. :mod:`leyden.parallel` puts its own :class:`Ranks` into ``model.ranks``; this one is a single process.
"""

from dataclasses import dataclass

import torch

from leyden.model.config import ModelConfig


@dataclass(frozen=True)
class RowPart:
    """The tokens of a packed row that one rank of several holds, one contiguous stretch a rank.

    Attributes:
        bounds: [ranks + 1]; rank r holds tokens ``bounds[r]`` to ``bounds[r + 1] - 1`` of the row.
        rank: which part this is.
        cu_seqlens: [N + 1], the bounds of the whole row's documents.
    """

    bounds: tuple[int, ...]
    rank: int
    cu_seqlens: tuple[int, ...]

    @property
    def start(self) -> int:
        """Where the part begins in the row."""
        return self.bounds[self.rank]

    @property
    def stop(self) -> int:
        """Where it ends."""
        return self.bounds[self.rank + 1]

    def documents(self) -> list[int]:
        """[N' + 1] bounds of the documents within the part, from 0 to its length; cut documents count."""
        inside = [bound - self.start for bound in self.cu_seqlens if self.start < bound < self.stop]
        return [0, *inside, self.stop - self.start]


class Ranks:
    """The processes that compute one micro-batch together.

    Attributes:
        divide_tokens: whether the hidden states between the layers are those of this rank's own tokens alone.
    """

    divide_tokens = False

    def part(self, num_tokens: int, cu_seqlens: torch.Tensor | None) -> RowPart | None:
        """Which tokens of a row of ``num_tokens`` this rank computes; None: all of them, alone."""
        return None

    def cut(self, row: torch.Tensor) -> torch.Tensor:
        """[1, T] over a row to [1, T'] over this rank's part of it, as the attention layers hold it."""
        return row

    def own(self, row: torch.Tensor) -> torch.Tensor:
        """[1, T] over a row to the values of the tokens that no other rank counts; those of all ranks are the row."""
        return row

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of ``values`` over all ranks that compute this micro-batch; not differentiable."""
        return values

    def row_sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of ``values`` over the ranks that share a row, on each of them; differentiable.

        The gradient is that of what all of them go on to compute from the sum: what is the same on each of them counts
        once if it goes through :meth:`once`.
        """
        return values

    def once(self, values: torch.Tensor) -> torch.Tensor:
        """``values``, which every rank of a row has alike, on one of these ranks, and zeros on the others."""
        return values

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """[1, T', D] of this rank's own tokens to [1, T, D] of the row's, on every rank; without a gradient."""
        return x

    def held(self, config: ModelConfig) -> ModelConfig:
        """The shape of the states, keys and values that this rank holds of a model of shape ``config``."""
        return config
