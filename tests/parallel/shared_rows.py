"""Rows of random documents that ranks share in random parts, and the precision rule for what they make of them."""

import random
from dataclasses import dataclass

import torch

from leyden.model import RowPart
from leyden.model.forward_context import ForwardContext


@dataclass(frozen=True)
class Row:
    """A packed row: where its documents begin and end, and the parts of the ranks; a seed for its contents."""

    documents: tuple[int, ...]
    bounds: tuple[int, ...]
    seed: int

    @property
    def tokens(self) -> int:
        """Its length."""
        return self.documents[-1]


def draw_row(drawn: random.Random, ranks: int, longest: int = 48) -> Row:
    """A row with what is hard: documents over many ranks, empty ones, ends that meet, parts of no token."""
    tokens = drawn.randint(1, longest)
    bounds = [0, *sorted(drawn.randint(0, tokens) for _ in range(ranks - 1)), tokens]
    if drawn.random() < 0.5:
        bounds = [tokens * index // ranks for index in range(ranks + 1)]
    inner = [drawn.randint(0, tokens) for _ in range(drawn.choice([0, 1, 2, 6, 20]))]
    if drawn.random() < 0.5:
        inner += drawn.sample(bounds, 2)  # documents that end where a part does
    return Row((0, *sorted(inner), tokens), tuple(bounds), drawn.randrange(1 << 30))


def context_of(row: Row, rank: int, dim: int = 2) -> ForwardContext:
    """What a layer is told of the part of ``rank``; the angles are none."""
    part = RowPart(row.bounds, rank, row.documents)
    angles = torch.zeros(part.stop - part.start, dim)
    bounds, positions = torch.tensor(part.documents(), dtype=torch.int32), torch.arange(part.start, part.stop)
    return ForwardContext(0, bounds, positions, angles, angles, 1.0, part)


def noise_of(found: torch.Tensor, exact: torch.Tensor, plain_row: torch.Tensor, exact_row: torch.Tensor) -> float:
    """An error as a share of what is allowed: 1e-12 in float64, else twice plain PyTorch's over the whole row.

    Root-mean-square errors, as in ``tests/ops/exactness.py``; the plain computation is that of one process in the same
    precision, to whose noise a rounding of the output is added.
    """
    if found.numel() == 0:
        return 0.0
    size = exact_row.square().mean().sqrt()
    error = (found.double() - exact).square().mean().sqrt()
    if found.dtype == torch.float64:
        return float((found - exact).abs().max() / (1e-12 * max(1.0, exact_row.abs().max().item())))
    noise = (plain_row.double() - exact_row).square().mean().sqrt()
    return float(error / (2 * noise + torch.finfo(found.dtype).eps * size))
