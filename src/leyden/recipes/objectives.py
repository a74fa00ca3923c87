"""What a stage may minimise, by the name that a recipe gives it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from leyden.align.policy import PolicyGradient
from leyden.align.preference import Preference
from leyden.align.sft import Sft
from leyden.recipes.sections import Rows
from leyden.train import Objective, Pretrain

if TYPE_CHECKING:
    from leyden.recipes.schema import TrainingStage

OBJECTIVES: "Mapping[str, Callable[[TrainingStage], Objective]]" = {
    "pretrain": lambda _: Pretrain(),
    "sft": lambda stage: Sft(stage.normalise),
    "preference": Preference,
    "rl": lambda stage: PolicyGradient(stage.rollouts.algorithm, stage.rollouts.temperature),
}

TRAINS_ON: Mapping[str, Rows] = {"sft": "chats", "preference": "preferences"}
"""The key of ``[data]`` that names the rows an objective trains on; the others train on documents."""

ON_PROMPTS = ("rl",)
"""Those that train on what the model answers to prompts (``[stage.rl]``), and read no data."""
