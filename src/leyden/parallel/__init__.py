"""Many ranks that train one model: the plan, the mesh, and what puts both into a finished model.

Reading order: ``plan.py``, ``mesh.py``, ``part.py``, ``weights.py``, ``attachment.py``; then a folder or file an axis.

Names resolve lazily (PEP 562): a run of one process needs neither pipelines nor FSDP.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.parallel.attachment import Attached as Attached
    from leyden.parallel.attachment import attach as attach
    from leyden.parallel.mesh import Mesh as Mesh
    from leyden.parallel.mesh import coordinates as coordinates
    from leyden.parallel.mesh import start_mesh as start_mesh
    from leyden.parallel.part import Box as Box
    from leyden.parallel.part import Part as Part
    from leyden.parallel.plan import ParallelConfig as ParallelConfig
    from leyden.parallel.plan import Plan as Plan
    from leyden.parallel.plan import make_plan as make_plan
    from leyden.parallel.rank_group import RankGroup as RankGroup
    from leyden.parallel.reshard import Resharding as Resharding
    from leyden.parallel.shard import Weight as Weight
    from leyden.parallel.shard import Weights as Weights
    from leyden.parallel.start import rank_device as rank_device
    from leyden.parallel.start import start_ranks as start_ranks
    from leyden.parallel.start import stop_ranks as stop_ranks
    from leyden.parallel.start import team_of as team_of
    from leyden.parallel.watchdog import Watchdog as Watchdog

_HOMES = {
    "Attached": "attachment",
    "Box": "part",
    "Mesh": "mesh",
    "ParallelConfig": "plan",
    "Part": "part",
    "Plan": "plan",
    "RankGroup": "rank_group",
    "Resharding": "reshard",
    "Watchdog": "watchdog",
    "Weight": "shard",
    "Weights": "shard",
    "attach": "attachment",
    "coordinates": "mesh",
    "make_plan": "plan",
    "rank_device": "start",
    "start_mesh": "mesh",
    "start_ranks": "start",
    "stop_ranks": "start",
    "team_of": "start",
}
__all__ = [
    "Attached",
    "Box",
    "Mesh",
    "ParallelConfig",
    "Part",
    "Plan",
    "RankGroup",
    "Resharding",
    "Watchdog",
    "Weight",
    "Weights",
    "attach",
    "coordinates",
    "make_plan",
    "rank_device",
    "start_mesh",
    "start_ranks",
    "stop_ranks",
    "team_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'leyden.parallel' has no attribute {name!r}")
    return getattr(import_module(f"leyden.parallel.{_HOMES[name]}"), name)
