"""Recipes: a run as a document, its loader, and what carries it out."""

from leyden.recipes.info import describe
from leyden.recipes.loader import default_directory, dry, load_recipe
from leyden.recipes.quickstart import quickstart
from leyden.recipes.runner import check, run
from leyden.recipes.schema import Recipe, TrainingStage

__all__ = [
    "Recipe",
    "TrainingStage",
    "check",
    "default_directory",
    "describe",
    "dry",
    "load_recipe",
    "quickstart",
    "run",
]
