"""Expert parallelism: tokens that travel to their experts, and a capacity that all ranks spend together.

Reading order: ``exchange.py``, with ``groups.py`` (what goes where), ``journey.py``, ``overlap.py``, ``flight.py`` and
``tape.py`` beneath it; ``router.py``.
"""

from torch import nn

from leyden.model.experts import Experts, MixtureOfExperts
from leyden.parallel.experts.exchange import ExpertExchange
from leyden.parallel.experts.overlap import Event, record_events
from leyden.parallel.experts.router import GlobalCapacity
from leyden.parallel.mesh import Mesh

__all__ = ["Event", "ExpertExchange", "GlobalCapacity", "install_experts", "record_events"]


def install_experts(model: nn.Module, mesh: Mesh) -> None:
    """Make the experts of ``model``, cut to this rank's part, and its routers work with those of the other ranks.

    Args:
        model: anything with :class:`leyden.model.experts.MixtureOfExperts` inside; without any, nothing happens.
        mesh: of the ranks.
    """
    shared = mesh.groups["ep"] is not None or mesh.groups["etp"] is not None
    stage = mesh.groups["stage"] if mesh.plan.settings.capacity == "global" else None
    for module in model.modules():
        if isinstance(module, Experts) and shared:
            module.compute = ExpertExchange(mesh)
        if isinstance(module, MixtureOfExperts) and stage is not None:
            module.drop = GlobalCapacity(stage)
