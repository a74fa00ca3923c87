"""The kinds of mixers: one file each, found by the table."""

from leyden.model.mixers.mixer import Memory, Mixer, MixerCount, PoolTensor, mean_keys
from leyden.model.mixers.table import MIXERS, mixer_of, residual_factors

__all__ = ["MIXERS", "Memory", "Mixer", "MixerCount", "PoolTensor", "mean_keys", "mixer_of", "residual_factors"]
