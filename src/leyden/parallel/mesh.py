"""The device mesh: the process groups of every axis, as one rank sees them.

Ranks are numbered with pipeline stages outermost and tensor ranks innermost, so that the axes that talk most are
nearest. The ranks of a stage's replica are numbered a second time for the experts, expert-tensor ranks innermost.
"""

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage] - documented, not in __all__
from torch.distributed.device_mesh import DeviceMesh

from leyden.parallel.plan import Plan

AXES = (
    "pp",
    "cp",
    "tp",
    "ep",
    "etp",
    "stage",
    "dense",
    "world",
    "expert_copies",
    "expert_widths",
    "fsdp_dense",
    "fsdp_stage",
    "fsdp_experts",
)
"""What traffic is counted by; the last three are FSDP's over the weights of attention and vocabulary, of the shared
expert, and of the experts."""

_LEAST_TIMEOUT_SECONDS = 300.0
"""Ranks do not start at the same moment."""


def coordinates(plan: Plan, rank: int) -> dict[str, int]:
    """Where ``rank`` stands on every axis."""
    pp, dp_replicate, dp_shard, cp, tp = np.unravel_index(rank, _dense_shape(plan))
    _, _, edp, ep, etp = np.unravel_index(rank, _expert_shape(plan))
    named = {"pp": pp, "dp_replicate": dp_replicate, "dp_shard": dp_shard, "cp": cp, "tp": tp}
    return {name: int(value) for name, value in (named | {"edp": edp, "ep": ep, "etp": etp}).items()}


@dataclass(frozen=True, eq=False)
class Mesh:
    """The groups that this rank is in.

    Attributes:
        plan: the sizes of the axes.
        rank: this one's number.
        device: of its tensors.
        at: its coordinates: ``pp``, ``dp_replicate``, ``dp_shard``, ``cp``, ``tp``, ``edp``, ``ep``, ``etp``.
        groups: by name; those of one rank are None. ``stage``: all ranks of the pipeline stage, which have its tokens
            among them. ``dense``: those of them with the same part of the heads. ``expert_copies``: those with the
            same part of the experts; ``expert_widths``: with the same experts, or a part of each. ``world``: all ranks.
        fsdp: the meshes over which FSDP shards: ``dense``, ``stage`` (weights that every rank applies to its own
            tokens) and ``experts``; two-dimensional with hybrid sharding.
        store: what ranks tell each other beside collectives; None where nothing but collectives is needed.
    """

    plan: Plan
    rank: int
    device: torch.device
    at: dict[str, int]
    groups: dict[str, dist.ProcessGroup | None]
    fsdp: dict[str, DeviceMesh]
    store: Store | None = None

    @property
    def dp_rank(self) -> int:
        """Which documents are this rank's."""
        return self.at["dp_replicate"] * self.plan.dp_shard + self.at["dp_shard"]

    def size(self, name: str) -> int:
        """How many ranks group ``name`` has."""
        group = self.groups[name]
        return 1 if group is None else group.size()

    def index(self, name: str) -> int:
        """This rank's number in group ``name``."""
        group = self.groups[name]
        return 0 if group is None else group.rank()

    def axis_of(self, group_name: str) -> str | None:
        """The axis of a process group's name, for counting what was sent over it."""
        return next(
            (n for n, group in self.groups.items() if group is not None and group.group_name == group_name), None
        )


def start_mesh(plan: Plan, device: torch.device, store: Store | None = None) -> Mesh:
    """Make the groups of ``plan``; every rank of the world calls this at the same moment.

    The world's process group exists already (:func:`leyden.parallel.start_ranks`).
    """
    rank = dist.get_rank()
    dense = np.arange(plan.world).reshape(_dense_shape(plan))
    experts = np.arange(plan.world).reshape(_expert_shape(plan))
    timeout = collective_timeout(plan)

    def group(grid: np.ndarray, axes: tuple[int, ...], name: str) -> dist.ProcessGroup:
        """This rank's group along ``axes`` of ``grid``."""
        ranks = _along(grid, axes, rank)
        made = dist.new_group(ranks.tolist(), timeout, use_local_synchronization=True, group_desc=name)
        assert isinstance(made, dist.ProcessGroup), "a rank is in its own group"
        return made

    groups: dict[str, dist.ProcessGroup | None] = {
        name: group(grid, axes, name) if _along(grid, axes, rank).size > 1 else None
        for name, grid, axes in (
            ("pp", dense, (0,)),
            ("cp", dense, (3,)),
            ("tp", dense, (4,)),
            ("stage", dense, (1, 2, 3, 4)),
            ("dense", dense, (1, 2, 3)),
            ("ep", experts, (3,)),
            ("etp", experts, (4,)),
            ("expert_copies", experts, (1, 2)),
            ("expert_widths", experts, (1, 2, 4)),
            ("world", dense, (0, 1, 2, 3, 4)),
        )
    }
    fsdp = {}
    for name, grid, axes in (("dense", dense, (2, 3)), ("stage", dense, (2, 3, 4)), ("experts", experts, (2,))):
        shard = groups[f"fsdp_{name}"] = group(grid, axes, f"fsdp_{name}")
        if plan.dp_replicate > 1:
            copies = groups[f"copies_{name}"] = group(grid, (1,), f"copies_{name}")
            ranks = torch.from_numpy(_along(grid, (1, *axes), rank).reshape(plan.dp_replicate, -1))
            names = ("dp_replicate", name)
            fsdp[name] = DeviceMesh.from_group([copies, shard], device.type, ranks, mesh_dim_names=names)
        else:
            fsdp[name] = DeviceMesh.from_group(shard, device.type, mesh_dim_names=(name,))
    return Mesh(plan, rank, device, coordinates(plan, rank), groups, fsdp, store)


def collective_timeout(plan: Plan) -> timedelta:
    """How long a collective waits for a rank: longer than the watchdog, which comes first and names the rank."""
    return timedelta(seconds=max(_LEAST_TIMEOUT_SECONDS, 2 * plan.settings.timeout_seconds))


def _dense_shape(plan: Plan) -> tuple[int, ...]:
    return plan.pp, plan.dp_replicate, plan.dp_shard, plan.cp, plan.tp


def _expert_shape(plan: Plan) -> tuple[int, ...]:
    return plan.pp, plan.dp_replicate, plan.edp, plan.ep, plan.etp


def _along(grid: np.ndarray, axes: tuple[int, ...], rank: int) -> np.ndarray:
    """The ranks that differ from ``rank`` along ``axes`` alone, itself among them, in order."""
    place = np.unravel_index(rank, grid.shape)
    index = tuple(slice(None) if axis in axes else place[axis] for axis in range(grid.ndim))
    return grid[index].flatten()
