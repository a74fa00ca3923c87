"""Reward models: a model with a score head learns from pairs which answers are better, and grades others."""

from leyden.align.reward_models.objective import RewardModelSettings, ScoredPairs

__all__ = ["RewardModelSettings", "ScoredPairs"]
