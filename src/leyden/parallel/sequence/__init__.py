"""Ranks that share a row: LASP+ in lightning layers, ring attention in softmax layers (arXiv 2501.08313, section 3).

Between the layers a context rank holds one stretch of the row (:class:`leyden.model.RowPart`). Lightning layers keep
that layout and exchange states (``lasp.py``). Softmax layers deal the row out anew, so that causal work is even
(``layout.py``), by an explicit switch there and back (``switch.py``), and pass keys and values around (``ring.py``).
"""

from typing import Any

import torch
from torch import nn

from leyden.core.errors import UserError
from leyden.model.lightning import LightningAttention
from leyden.model.lm import DecoderLayer
from leyden.model.softmax import SoftmaxAttention
from leyden.parallel.mesh import Mesh
from leyden.parallel.sequence.lasp import LaspPlus
from leyden.parallel.sequence.ring import RingAttention

__all__ = ["LaspPlus", "RingAttention", "install_sequence"]


def install_sequence(model: nn.Module, mesh: Mesh) -> None:
    """Give every attention layer in ``model`` the means to share its rows; with one context rank, nothing changes.

    Raises:
        UserError: a layer whose ranks have no way to exchange what they miss.
    """
    if mesh.plan.cp == 1:
        return
    # Both begin exchanges that end elsewhere, which a compiler must not take apart.
    scan: Any = torch.compiler.disable(LaspPlus(mesh))
    attend: Any = torch.compiler.disable(RingAttention(mesh))
    for mixer in [module.self_attn for module in model.modules() if isinstance(module, DecoderLayer)]:
        if isinstance(mixer, LightningAttention):
            mixer.scan = scan
        elif isinstance(mixer, SoftmaxAttention):
            mixer.attend = attend
        else:
            raise UserError(
                f"context parallelism has no exchange for {type(mixer).__name__}: its tokens would see those of their "
                "own rank alone; train this model with cp = 1."
            )
