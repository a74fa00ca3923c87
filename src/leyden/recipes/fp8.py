"""What a recipe with matrix products in 8-bit tiles (``train.fp8``) may ask for."""

from typing import TYPE_CHECKING

from leyden.recipes.objectives import ON_PROMPTS
from leyden.train.fp8 import fp8_problem

if TYPE_CHECKING:
    from leyden.recipes.schema import Recipe


def check_fp8(recipe: "Recipe") -> None:
    """Refuse 8-bit tiles where they would not be exact.

    Raises:
        ValueError: with the reason.
    """
    if recipe.train.fp8 == "none":
        return
    problem = fp8_problem(recipe.parallel, adapters=recipe.train.lora is not None)
    drawn = [stage.name for stage in recipe.stage if stage.objective in ON_PROMPTS]
    if drawn and problem is None:
        problem = (
            f"stage '{drawn[0]}': completions are drawn with products in the model's dtype, and train.fp8 = 'blocks' "
            "would learn from them by others, so that no ratio of probabilities is 1; take the stage into a recipe of "
            "its own, or leave train.fp8 out"
        )
    if problem is not None:
        raise ValueError(problem)
