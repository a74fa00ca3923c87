"""The way of every group of tokens to the experts and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from leyden.parallel.experts.flight import depart
from leyden.parallel.experts.groups import TokenGroup
from leyden.parallel.experts.overlap import Way, note, staggered
from leyden.parallel.mesh import Mesh

Rows = Callable[[TokenGroup], torch.Tensor]
"""The rows [rows, D] that a group sends."""

Work = Callable[[int, torch.Tensor], torch.Tensor]
"""What becomes, where the experts are, of the rows at hand [R, D] of the group with this number."""


@dataclass(frozen=True, eq=False)
class Journey:
    """Groups of tokens, ready to leave; all ranks of an EP and ETP group make the same journeys.

    Attributes:
        mesh: of the ranks.
        groups: of this rank's tokens.
    """

    mesh: Mesh
    groups: Sequence[TokenGroup]

    def make(self, direction: str, rows: Rows, work: Work) -> list[torch.Tensor]:
        """Send the rows of every group, work on what arrives, and bring the results back to their places.

        Args:
            direction: ``forward`` or ``backward``, for who records events.
            rows, work: see :data:`Rows`, :data:`Work`.

        Returns:
            For every group [rows, D].
        """
        return staggered(self._way(direction, index, rows, work) for index in range(len(self.groups)))

    def _way(self, direction: str, index: int, rows: Rows, work: Work) -> Way[torch.Tensor]:
        ep, etp, group = self.mesh.groups["ep"], self.mesh.groups["etp"], self.groups[index]

        def fly(
            stage: str, x: torch.Tensor, sent: list[int], received: list[int], over: dist.ProcessGroup
        ) -> Way[torch.Tensor]:
            flight = depart(x, sent, received, over)
            note(direction, stage, index, "issued")
            yield  # other groups go on
            arrived = flight.arrive()
            note(direction, stage, index, "done")
            return arrived

        x = rows(group)
        if ep is not None:
            x = yield from fly("dispatch", x, group.sent, group.received, ep)
        own, to_peers, from_peers = len(x), group.to_peers, group.from_peers
        if etp is not None:
            copies = x if etp.size() == 2 else x.repeat(etp.size() - 1, 1)
            parts = yield from fly("gather", copies, to_peers, from_peers, etp)
            x = torch.cat([x, parts])
        x = work(index, x)
        note(direction, "experts", index, "computed")
        if etp is not None:
            parts = yield from fly("scatter", x[own:], from_peers, to_peers, etp)
            x = _sum([x[:own], *parts.split([own] * (etp.size() - 1))])
        if ep is not None:
            x = yield from fly("combine", x, group.received, group.sent, ep)
        return x


def _sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum in float32 (float64 for float64), in order."""
    total = parts[0].to(torch.promote_types(parts[0].dtype, torch.float32))
    for part in parts[1:]:
        total = total + part
    return total.to(parts[0].dtype)
