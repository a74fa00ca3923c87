"""The kinds of mixers there are, by the names of ``layer_types``."""

from collections.abc import Mapping

from leyden.model.config import ModelConfig
from leyden.model.kinds import entry_of
from leyden.model.mixers.cosformer2 import Cosformer2Attention
from leyden.model.mixers.hgrn2 import Hgrn2Attention
from leyden.model.mixers.latent import LatentAttention
from leyden.model.mixers.lightning import LightningAttention
from leyden.model.mixers.mixer import Mixer
from leyden.model.mixers.sliding_window import SlidingWindowAttention
from leyden.model.mixers.softmax import SoftmaxAttention

MIXERS: Mapping[str, type[Mixer]] = {
    "linear_attention": LightningAttention,
    "full_attention": SoftmaxAttention,
    "sliding_attention": SlidingWindowAttention,
    "cosformer2_attention": Cosformer2Attention,
    "hgrn2_attention": Hgrn2Attention,
    "latent_attention": LatentAttention,
}
"""One line a kind."""


def mixer_of(kind: str) -> type[Mixer]:
    """The mixer of a layer of ``kind``.

    Raises:
        UserError: there is none.
    """
    return entry_of(MIXERS, kind, "has no mixer")


def residual_factors(config: ModelConfig, layer: int) -> tuple[float, float]:
    """The factors (alpha, beta) of the residual around the mixer of ``layer``."""
    return config.residual(mixer_of(config.layer_types[layer]).residual)
