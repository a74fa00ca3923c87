"""The ranks of a run as its loop sees them: sums over all of them, decisions they take together, who writes."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from leyden.parallel.mesh import Mesh


class Team:
    """All ranks of a run; without a mesh, one process.

    Args:
        mesh: of the ranks.
    """

    def __init__(self, mesh: Mesh | None = None) -> None:
        self.mesh = mesh
        self._world = None if mesh is None else mesh.groups["world"]

    @property
    def rank(self) -> int:
        """This one's number; 0 writes what a run writes once."""
        return 0 if self.mesh is None else self.mesh.rank

    @property
    def share(self) -> tuple[int, int]:
        """Which of how many shares of every batch is this rank's; ranks of the same documents have the same."""
        return (0, 1) if self.mesh is None else (self.mesh.dp_rank, self.mesh.plan.dp)

    def sum(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The sums of tensors over all ranks, in float64 where there are several; one exchange."""
        if self._world is None:
            return list(tensors)
        assert self.mesh is not None, "a group has a mesh"
        flat = torch.cat([tensor.detach().flatten().double() for tensor in tensors]).to(self.mesh.device)
        dist.all_reduce(flat, group=self._world)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same answer on all of them."""
        if self._world is None:
            return flag
        assert self.mesh is not None, "a group has a mesh"
        votes = torch.tensor(int(flag), device=self.mesh.device)
        dist.all_reduce(votes, group=self._world)
        return bool(votes)

    def wait(self) -> None:
        """Until every rank is here."""
        self.any(False)
