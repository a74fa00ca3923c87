"""Mixtures: how often each document is used for a token budget, and trial runs that repeat as the full run will."""

from leyden.data.token_budget.forecast import forecast
from leyden.data.token_budget.plan import CLASSES, Cell, CellPlan, MixturePlan, QualityClass, plan_mixture
from leyden.data.token_budget.plots import draw_mixture
from leyden.data.token_budget.repetition import Matched, MatchRepetition, match_source
from leyden.data.token_budget.stage import PlanMixture

__all__ = [
    "CLASSES",
    "Cell",
    "CellPlan",
    "MatchRepetition",
    "Matched",
    "MixturePlan",
    "PlanMixture",
    "QualityClass",
    "draw_mixture",
    "forecast",
    "match_source",
    "plan_mixture",
]
