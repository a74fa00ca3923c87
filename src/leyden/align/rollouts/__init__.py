"""Online reinforcement learning: completions drawn by the serving engine on the trainer's own weights, and graded.

Reading order: ``settings.py`` (the table ``[stage.rl]``), ``environment.py`` (where prompts and rewards come from),
``prompts.py``, ``drawing.py`` (completions of prompts), ``rows.py`` (packed rows with advantages and
log-probabilities), ``batches.py`` (what the training loop reads).
"""

from leyden.align.rollouts.environment import Environment
from leyden.align.rollouts.settings import RolloutSettings

__all__ = ["Environment", "RolloutSettings"]
