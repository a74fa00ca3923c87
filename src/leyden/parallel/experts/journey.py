"""The way of every group of tokens to the experts and back."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from leyden.parallel.experts.flight import depart
from leyden.parallel.experts.groups import TokenGroup
from leyden.parallel.experts.overlap import Way, note, staggered
from leyden.parallel.mesh import Mesh

Leave = Callable[[int], torch.Tensor]
"""From a group's number to the rows [rows, D] that it sends."""

Work = Callable[[int, torch.Tensor], torch.Tensor]
"""What becomes of a group's rows [R, D] where the experts are."""

Return = Callable[[int, torch.Tensor], None]
"""What is done with a group's rows [rows, D] when they are back, in the order in which they left."""


@dataclass(frozen=True, eq=False)
class Journey:
    """Groups of tokens, ready to leave; all ranks of an EP and ETP group make the same journeys.

    Attributes:
        mesh: of the ranks.
        groups: of this rank's tokens.
    """

    mesh: Mesh
    groups: Sequence[TokenGroup]

    def make(self, direction: str, leave: Leave, work: Work, back: Return) -> None:
        """Send the rows of every group, work on what arrives, and bring the results back.

        Args:
            direction: ``forward`` or ``backward``, for who records events.
            leave, work, back: see :data:`Leave`, :data:`Work` and :data:`Return`.
        """
        staggered(self._way(direction, index, leave, work, back) for index in range(len(self.groups)))

    def _way(self, direction: str, index: int, leave: Leave, work: Work, back: Return) -> Way:
        ep, etp, group = self.mesh.groups["ep"], self.mesh.groups["etp"], self.groups[index]

        def fly(
            stage: str, x: torch.Tensor, sent: list[int], received: list[int], over: dist.ProcessGroup
        ) -> Generator[None, None, torch.Tensor]:
            flight = depart(x, sent, received, over)
            note(direction, stage, index, "issued")
            yield  # other groups go on
            arrived = flight.arrive()
            note(direction, stage, index, "done")
            return arrived

        x = leave(index)
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
        back(index, x)


def _sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum in float32 (float64 for float64), in order."""
    total = parts[0].to(torch.promote_types(parts[0].dtype, torch.float32))
    for part in parts[1:]:
        total = total + part
    return total.to(parts[0].dtype)
