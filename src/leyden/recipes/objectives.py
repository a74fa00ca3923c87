"""What a stage may minimise, by the name that a recipe gives it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from leyden.align.sft import Sft
from leyden.train import Objective, Pretrain

if TYPE_CHECKING:
    from leyden.recipes.schema import TrainingStage

OBJECTIVES: "Mapping[str, Callable[[TrainingStage], Objective]]" = {
    "pretrain": lambda _: Pretrain(),
    "sft": lambda stage: Sft(stage.normalise),
}

ON_CHATS = ("sft",)
"""Those that train on chats (``[data] chats``); the others train on documents."""
