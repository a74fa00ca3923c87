"""Expert parallelism: tokens go to the ranks of their experts and back, and capacity is counted over all ranks.

Reading order: ``exchange.py`` (dispatch, experts, combine), with ``dispatch.py`` (which rows go to which rank),
``overlap.py`` (communication beside computation) and ``recorded_op.py`` (the experts' backward) beneath it; then
``router.py`` (the capacity).
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
