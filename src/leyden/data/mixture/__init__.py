"""Mixtures: how often each document is used for a token budget, and trial runs that repeat as the full run will."""

from leyden.data.mixture.forecast import forecast
from leyden.data.mixture.plan import CLASSES, Cell, CellPlan, MixturePlan, QualityClass, plan_mixture
from leyden.data.mixture.plots import draw_mixture
from leyden.data.mixture.repetition import Matched, MatchRepetition, match_source
from leyden.data.mixture.stage import Mixture

__all__ = [
    "CLASSES",
    "Cell",
    "CellPlan",
    "MatchRepetition",
    "Matched",
    "Mixture",
    "MixturePlan",
    "QualityClass",
    "draw_mixture",
    "forecast",
    "match_source",
    "plan_mixture",
]
