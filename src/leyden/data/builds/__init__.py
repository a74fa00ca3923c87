"""Builds: a recipe of sources and stages, run, counted, reported and looked into."""

from leyden.data.builds.directory import Build, Counts, StageDirectory
from leyden.data.builds.recipe import BuildRecipe, BuildSection, load_build_recipe
from leyden.data.builds.run import run_build

__all__ = ["Build", "BuildRecipe", "BuildSection", "Counts", "StageDirectory", "load_build_recipe", "run_build"]
