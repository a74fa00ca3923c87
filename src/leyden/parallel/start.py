"""Starting and ending a run on the ranks that torchrun started."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage] - documented, not in __all__

from leyden.core.errors import Interrupted, UserError
from leyden.core.launch import launched
from leyden.core.log import speak_up
from leyden.parallel.launcher import end_with_launcher
from leyden.parallel.mesh import Mesh, collective_timeout, start_mesh
from leyden.parallel.plan import Plan
from leyden.parallel.rank_group import RankGroup

_PATIENCE_SECONDS = 3.0
"""How long a rank that ends with an error waits to learn whether the first rank ends with the same."""


def rank_device() -> torch.device:
    """The device of this rank: the GPU of its number on the machine, else the CPU. Makes it the current one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", launched().local_rank)
    torch.cuda.set_device(device)
    return device


def start_ranks(plan: Plan, device: torch.device) -> Mesh:
    """Join the other ranks and make the groups of ``plan``; every rank that torchrun started calls this.

    Args:
        plan: of as many ranks as there are.
        device: of this rank's tensors; on a GPU, the ranks have gloo beside NCCL, for what is in host memory.
    """
    launch = launched()
    store, rank, world = next(rendezvous("env://", launch.rank, launch.world))
    # torchrun keeps its store when it starts the ranks anew, with the addresses of those that are gone in it.
    store = PrefixStore(f"restart {launch.restart}", store)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("groups", store),
        rank=rank,
        world_size=world,
        timeout=collective_timeout(plan),
        device_id=device if device.type == "cuda" else None,
    )
    return start_mesh(plan, device, PrefixStore("run", store))


def stop_ranks() -> None:
    """Leave the other ranks; all groups are gone afterwards."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def team_of(plan: Plan) -> Iterator[RankGroup]:
    """The ranks of ``plan`` inside the ``with``; where the plan has one, this process, and nothing is started.

    An error that all ranks have is the first rank's to tell, and the others are silent; one that a rank has alone
    names it.
    """
    if plan.world == 1:
        yield RankGroup()
        return
    end_with_launcher()
    mesh = start_ranks(plan, rank_device())
    try:
        yield RankGroup(mesh)
    except BaseException as error:
        # The end of the process ends its groups: left in order, they might wait for ranks that are gone.
        if not _is_shared(mesh, error):
            _name(error, mesh.rank)
        elif mesh.rank > 0 and not isinstance(error, UserError | Interrupted | KeyboardInterrupt):
            raise SystemExit(1) from None  # one traceback is enough
        raise
    stop_ranks()


def _is_shared(mesh: Mesh, error: BaseException) -> bool:
    """Whether the first rank ends with the same error."""
    assert mesh.store is not None, "start_ranks gives one"
    text = f"{type(error).__name__}: {error}"
    mesh.store.set(f"ended/{mesh.rank}", text)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not mesh.store.check(["ended/0"]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return mesh.store.get("ended/0").decode() == text


def _name(error: BaseException, rank: int) -> None:
    """Say on which rank ``error`` was."""
    speak_up()
    if isinstance(error, UserError | Interrupted):
        error.args = (f"rank {rank}: {error}",)
    else:
        error.add_note(f"This was on rank {rank}.")
