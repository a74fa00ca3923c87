"""Rewards: what is good about a response, by rules, by checking and by judges; one record a response.

Every kind of reward is a module here; :mod:`leyden.align.rewards.rows` reads the rows of a file for ``leyden reward``.
"""

from leyden.align.rewards.reward import Level, Reward, by_hierarchy

__all__ = ["Level", "Reward", "by_hierarchy"]
