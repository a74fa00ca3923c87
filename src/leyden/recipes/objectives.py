"""What a stage may minimise, by the name that a recipe gives it."""

from collections.abc import Callable, Mapping

from leyden.train import Objective, Pretrain

OBJECTIVES: Mapping[str, Callable[[], Objective]] = {
    "pretrain": Pretrain,
}
