"""What a stage says of multi-token prediction, and what that comes to in each of its steps."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from leyden.core.config import Config
from leyden.train.steps import no_mtp

if TYPE_CHECKING:
    from leyden.recipes.schema import Recipe, TrainingStage


class MultiTokenSettings(Config):
    """The keys of a stage that are about modules for multi-token prediction (``model.num_nextn_predict_layers``)."""

    mtp_weight: float | tuple[tuple[int, float], ...] = Field(default=0.3)
    """Of a model with modules for multi-token prediction: the mean of their losses is added times so much; 0: they are
    not trained. Several pairs [tokens, weight]: of the steps that begin after so many tokens of the stage."""

    @field_validator("mtp_weight", mode="before")
    @classmethod
    def _marks(cls, given: Any) -> Any:
        """Whole numbers of tokens may be written as 1e9."""
        pairs = given if isinstance(given, list | tuple) else [(0, given)]
        whole = all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs) and all(
            isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < math.inf for pair in pairs for x in pair
        )
        marks = [pair[0] for pair in pairs] if whole else []
        if marks[:1] != [0] or marks != sorted(set(marks)) or any(mark % 1 for mark in marks):
            raise ValueError(
                "must be a number of 0 or more, or pairs of tokens and such a number, of which the first is at 0 "
                f"tokens and the others rise: [[0, 0.3], [1e9, 0.1]]; given {given!r}"
            )
        weights = tuple((int(mark), float(weight)) for mark, weight in pairs)
        return weights if pairs is given else weights[0][1]


def mtp_weight_of(recipe: "Recipe", stage: "TrainingStage", trains: bool) -> Callable[[int], float]:
    """The weight of the losses of modules for multi-token prediction, by the step of ``stage``.

    Args:
        recipe: whose adapters, if it trains any, leave these modules as they are.
        stage: of it.
        trains: whether a stage with this objective trains them.
    """
    given = stage.mtp_weight
    if not trains or stage.normalise != "tokens" or recipe.train.lora is not None:
        return no_mtp
    if not isinstance(given, tuple):
        return lambda step: given
    schedule = stage.batch_schedule

    def weight(step: int) -> float:
        tokens = schedule.tokens_before(step)
        return next(weight for mark, weight in reversed(given) if mark <= tokens)

    return weight


def check_multi_token(recipe: "Recipe") -> None:
    """Refuse a weight where there is nothing to train.

    Raises:
        ValueError: with the reason.
    """
    default = MultiTokenSettings().mtp_weight
    for stage in recipe.stage:
        if stage.mtp_weight == default:
            continue
        if not recipe.model.num_nextn_predict_layers and stage.mtp_weight:
            raise ValueError(
                f"stage '{stage.name}': mtp_weight is of modules for multi-token prediction, and the model has none; "
                "say model.num_nextn_predict_layers = 1, or leave it out"
            )
        if recipe.train.lora is not None and stage.mtp_weight:
            raise ValueError(
                f"stage '{stage.name}': mtp_weight trains modules for multi-token prediction, and a run of adapters "
                "(train.lora) leaves them as they are; leave one of the two out"
            )
