"""What a plan needs before it is tried: whether it can be, its memory, its traffic, its time; and the best ones."""

from leyden.parallel.planner.check import check_plan, problems_of
from leyden.parallel.planner.step import StepShape

__all__ = ["StepShape", "check_plan", "problems_of"]
