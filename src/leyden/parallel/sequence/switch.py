"""The switch between the two layouts of a row: from the stretches of lightning layers to a dealt-out one, and back.

Both layouts hold their tokens in the order of the row, and stretches follow each other by rank. What a rank is sent,
stretch by stretch, is therefore in its own order on arrival, and only the sender of the first way, who is the receiver
of the second, has to permute. One all-to-all each way; the gradient of either way is the other.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from leyden.model import RowPart
from leyden.parallel.sequence.layout import balanced


@dataclass(frozen=True)
class Route:
    """Where this rank's tokens go.

    Attributes:
        order: [T'] int64, the part's tokens in the order in which they are sent, rank by rank; on the tokens' device.
        inverse: [T'] int64, where each token of the part is in that order.
        sent: how many tokens of the part each rank gets.
        received: how many tokens this rank gets of each rank's part.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    sent: tuple[int, ...]
    received: tuple[int, ...]

    @classmethod
    @functools.lru_cache(maxsize=16)
    def of(cls, part: RowPart, device: torch.device) -> "Route":
        """From the rank's part of a row to the row's balanced layout."""
        layout = balanced(len(part.bounds) - 1, part.cu_seqlens)
        mine = [positions[(positions >= part.start) & (positions < part.stop)] for positions in layout.positions]
        order = torch.cat(mine) - part.start
        arriving = torch.bucketize(layout.positions[part.rank], torch.tensor(part.bounds[1:]), right=True)
        received = arriving.bincount(minlength=len(mine)).tolist()
        return cls(order.to(device), order.argsort().to(device), tuple(map(len, mine)), tuple(received))


def to_balanced(rows: torch.Tensor, route: Route, group: dist.ProcessGroup) -> torch.Tensor:
    """The part's rows [T', ...] to those of this rank in the balanced layout."""
    return _Switch.apply(rows, route, group, False)


def to_contiguous(rows: torch.Tensor, route: Route, group: dist.ProcessGroup) -> torch.Tensor:
    """Rows in the balanced layout to those of the part [T', ...]."""
    return _Switch.apply(rows, route, group, True)


class _Switch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, route: Route, group: dist.ProcessGroup, back: bool) -> torch.Tensor:
        ctx.route, ctx.group, ctx.back = route, group, back
        return _switch(rows, route, group, back)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _switch(grads[0], ctx.route, ctx.group, not ctx.back), None, None, None


def _switch(rows: torch.Tensor, route: Route, group: dist.ProcessGroup, back: bool) -> torch.Tensor:
    sent, received = (route.received, route.sent) if back else (route.sent, route.received)
    rows = rows.contiguous() if back else rows.index_select(0, route.order)
    arrived = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(arrived, rows, list(received), list(sent), group=group)
    return arrived.index_select(0, route.inverse) if back else arrived
