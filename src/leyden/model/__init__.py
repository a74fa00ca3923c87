"""The hybrid language model, on one device and without any distributed code."""

from leyden.model.balance import (
    Documents,
    RouterLosses,
    RouterSums,
    router_losses,
    router_sums,
    total_router_losses,
)
from leyden.model.cache import Cache
from leyden.model.config import TRAINING_FIELDS, LayerKind, LayerType, MlpType, ModelConfig
from leyden.model.count import ModelCount, count_model, prefill_flops
from leyden.model.decode import NativeDecoder
from leyden.model.embedding import Inserts
from leyden.model.lm import Features, HybridLM, check_tokens
from leyden.model.mixers import MIXERS, Memory, Mixer
from leyden.model.pools import Pools
from leyden.model.presets import PRESETS, preset
from leyden.model.quantized import (
    QuantizedEmbedding,
    QuantizedExperts,
    QuantizedLinear,
    QuantizedOutputProjection,
    quantize,
)
from leyden.model.ranks import Ranks, RowPart
from leyden.model.rope import Rope, RopeScaling
from leyden.model.rows import PAGE, Rows
from leyden.model.scoring import evaluation_mode, text_logprobs

__all__ = [
    "MIXERS",
    "PAGE",
    "PRESETS",
    "TRAINING_FIELDS",
    "Cache",
    "Documents",
    "Features",
    "HybridLM",
    "Inserts",
    "LayerKind",
    "LayerType",
    "Memory",
    "Mixer",
    "MlpType",
    "ModelConfig",
    "ModelCount",
    "NativeDecoder",
    "Pools",
    "QuantizedEmbedding",
    "QuantizedExperts",
    "QuantizedLinear",
    "QuantizedOutputProjection",
    "Ranks",
    "Rope",
    "RopeScaling",
    "RouterLosses",
    "RouterSums",
    "RowPart",
    "Rows",
    "check_tokens",
    "count_model",
    "evaluation_mode",
    "prefill_flops",
    "preset",
    "quantize",
    "router_losses",
    "router_sums",
    "text_logprobs",
    "total_router_losses",
]
