"""``environment.json`` of a run: the machine it was computed on, and a warning where it goes on on another."""

import json
from pathlib import Path
from typing import Any

import torch

from leyden.core.device import default_device
from leyden.core.environment import machine
from leyden.core.files import atomic_file
from leyden.core.log import say
from leyden.ops.backend import choose
from leyden.parallel import RankGroup

_DECIDE_BITS = ("cpu", "gpus", "threads", "ranks", "backend", "torch")
"""With another of these, sums are taken in another order or by other instructions."""


def note_machine(directory: Path, dtype: str, rank_group: RankGroup) -> None:
    """Write ``environment.json``; say once what differs from where the run's steps were taken so far.

    Args:
        directory: the run's.
        dtype: that it computes in.
        rank_group: the ranks.
    """
    wanted, device = getattr(torch, dtype), default_device()
    backend = choose("training", "auto", torch.empty(0, device=device), triton=wanted, native=wanted)
    now = machine() | {"ranks": 1 if rank_group.mesh is None else rank_group.mesh.plan.world, "backend": backend}
    path = directory / "environment.json"
    before = _read(path) if any((directory / "checkpoints").glob("step_*")) else {}
    other = [f"{key} {before[key]} -> {now[key]}" for key in _DECIDE_BITS if key in before and before[key] != now[key]]
    if other:
        say(f"the machine is another than before ({'; '.join(other)}): the bits of the steps from here on may differ")
    with atomic_file(path) as part:
        part.write_text(json.dumps(now, indent=1), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
