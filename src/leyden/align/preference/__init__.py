"""Preference optimisation: a model learns from pairs of answers which of two is better."""

from leyden.align.preference.losses import LOSSES, PreferenceSettings
from leyden.align.preference.objective import Preference

__all__ = ["LOSSES", "Preference", "PreferenceSettings"]
