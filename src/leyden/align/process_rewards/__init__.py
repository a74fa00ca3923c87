"""Process reward models: a score for each step of a solution, learned from labels that say which steps are right.

Reading order: ``solutions.py`` (rows, and how their labels are marked), ``objective.py`` (what a training step
minimises), ``batches.py``, ``scorer.py`` (grading), ``labels.py`` (where labels come from).
"""

from leyden.align.process_rewards.objective import LabelledSteps

__all__ = ["LabelledSteps"]
