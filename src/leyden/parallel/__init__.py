"""Many ranks that train one model: the plan, the mesh, and what puts both into a finished model.

Reading order: ``plan.py``, ``mesh.py``, ``part.py``, ``weights.py``, ``attach.py``; then a folder or file an axis.
"""

from leyden.parallel.mesh import Mesh, coordinates, start_mesh
from leyden.parallel.part import Box, Part
from leyden.parallel.plan import ParallelConfig, Plan, make_plan
from leyden.parallel.shard import Weight, Weights
from leyden.parallel.team import Team

__all__ = [
    "Box",
    "Mesh",
    "ParallelConfig",
    "Part",
    "Plan",
    "Team",
    "Weight",
    "Weights",
    "coordinates",
    "make_plan",
    "start_mesh",
]
