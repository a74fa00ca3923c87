"""Policy gradients as a few pure functions: advantages, surrogate losses, divergences, and the settings that join them.

Reading order: ``algorithm.py`` (the settings and their presets), ``advantages.py``, ``values.py`` (advantages of single
tokens), ``surrogate.py``, ``divergence.py``, ``objective.py`` (what a training step minimises), ``critic.py`` (what a
critic's does).
"""

from leyden.align.policy.algorithm import PRESETS, Algorithm
from leyden.align.policy.critic import CriticSettings, ValueLoss
from leyden.align.policy.objective import PolicyGradient

__all__ = ["PRESETS", "Algorithm", "CriticSettings", "PolicyGradient", "ValueLoss"]
