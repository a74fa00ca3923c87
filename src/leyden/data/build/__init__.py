"""Builds: a recipe of sources and stages, run, counted, reported and looked into."""

from leyden.data.build.directory import Build, Counts, StageDirectory
from leyden.data.build.recipe import BuildRecipe, BuildSection, load_build_recipe
from leyden.data.build.run import run_build

__all__ = ["Build", "BuildRecipe", "BuildSection", "Counts", "StageDirectory", "load_build_recipe", "run_build"]
