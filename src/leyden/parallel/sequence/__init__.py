"""Ranks that share a row: LASP+ in lightning layers, ring attention in softmax layers (arXiv 2501.08313, section 3).

Between the layers a context rank holds one stretch of the row (:class:`leyden.model.RowPart`). Layers of linear
attention keep that layout and exchange states (``lasp.py``, and ``gated.py`` where decays follow from the data).
Softmax layers deal the row out anew, so that causal work is even (``layout.py``), by an explicit switch there and back
(``switch.py``), and pass keys and values around (``ring.py``).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from leyden.core.errors import UserError
from leyden.model import Mixer
from leyden.model.lm import DecoderLayer
from leyden.model.mixers.cosformer2 import Cosformer2Attention
from leyden.model.mixers.hgrn2 import Hgrn2Attention
from leyden.model.mixers.latent import LatentAttention
from leyden.model.mixers.lightning import LightningAttention
from leyden.model.mixers.sliding_window import SlidingWindowAttention
from leyden.model.mixers.softmax import SoftmaxAttention
from leyden.parallel.mesh import Mesh
from leyden.parallel.sequence.gated import GatedLasp
from leyden.parallel.sequence.lasp import LaspPlus
from leyden.parallel.sequence.ring import RingAttention

__all__ = ["EXCHANGES", "GatedLasp", "LaspPlus", "RingAttention", "install_sequence"]


EXCHANGES: Mapping[type[Mixer], Callable[[Mesh], Any]] = {
    LightningAttention: LaspPlus,
    SoftmaxAttention: RingAttention,
    SlidingWindowAttention: RingAttention,
    Cosformer2Attention: LaspPlus,
    Hgrn2Attention: GatedLasp,
    LatentAttention: RingAttention,  # of expanded keys and values
}
"""What takes the place of :attr:`leyden.model.Mixer.alone` in a mixer of each kind."""


def install_sequence(model: nn.Module, mesh: Mesh) -> None:
    """Give every attention layer in ``model`` the means to share its rows; with one context rank, nothing changes.

    Raises:
        UserError: a layer whose ranks have no way to exchange what they miss.
    """
    if mesh.plan.cp == 1:
        return
    # They begin exchanges that end elsewhere, which a compiler must not take apart.
    exchanges: dict[type[Mixer], Any] = {}
    for mixer in [module.self_attn for module in model.modules() if isinstance(module, DecoderLayer)]:
        kind = type(mixer)
        if kind not in EXCHANGES:
            raise UserError(
                f"context parallelism has no exchange for {kind.__name__}: its tokens would see those of their own "
                "rank alone; train this model with cp = 1."
            )
        if kind not in exchanges:
            exchanges[kind] = torch.compiler.disable(EXCHANGES[kind](mesh))
        setattr(mixer, kind.seam, exchanges[kind])
