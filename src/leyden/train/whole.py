"""The whole model of a run on one process, as it is now: a copy, to be evaluated while the run goes on."""

from typing import Any

import torch

from leyden.core.device import default_device
from leyden.model import HybridLM
from leyden.model.lora import add_lora, quantize_base
from leyden.parallel import Weights
from leyden.parallel.attachment import Attached
from leyden.parallel.reshard import Resharding
from leyden.train.generators import generators_kept
from leyden.train.state import TrainState


def whole_model(state: TrainState, dtype: torch.dtype) -> HybridLM:
    """A copy of the model, in evaluation mode.

    All ranks of the group call this, under any plan, and each gets one: a rank has to have room for the whole model
    beside its part.

    Args:
        state: stays as it is.
        dtype: of the matrices of the copy: that in which the model computes.
    """
    mesh, config = state.rank_group.mesh, state.model.config
    device = default_device() if mesh is None else mesh.device
    with generators_kept():
        copy = HybridLM(config)
        if state.lora is not None:
            add_lora(copy, state.lora)
            if state.lora.int8:
                quantize_base(copy)
        copy = copy.to(device).to(dtype).eval()
    model: Any = state.model
    if mesh is None:
        copy.load_state_dict(model.state_dict())
    else:
        held = Weights({**state.frozen_weights, **state.optimizer.weights})
        Resharding(Attached(model, held), mesh, copy).put()
    return copy
