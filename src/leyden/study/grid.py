"""A grid of runs as a document: one recipe, axes whose values are multiplied, seeds, and what the whole may cost."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from leyden.core.config import Config, read_toml


class Axis(Config):
    """One thing that the points of a grid differ in: either a key and its values, or named points of several keys."""

    name: str = Field(min_length=1)
    key: str | None = None
    """A key of a recipe, as ``--set`` names it (``stage.0.lr``), or ``flops``: the budget of a point in training
    operations, from which the steps of its stage follow."""
    values: tuple[Any, ...] = ()
    points: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Tables of a recipe's keys, by the name that a point has in tables and plots."""

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        if (self.key is None) == (not self.points) or (self.key is None) != (not self.values):
            raise ValueError("an axis has either key and values, or points")
        return self

    def choices(self) -> dict[str, dict[str, Any]]:
        """The settings of each value, by its name."""
        if self.key is not None:
            return {_label(value): {self.key: value} for value in self.values}
        return {name: dict(_leaves(settings)) for name, settings in self.points.items()}


class Grid(Config):
    """The whole of it; its points are the product of all axes and seeds."""

    recipe: str
    """The path of a recipe, or the name of a shipped one; what every point begins with."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe that all points change."""
    axis: tuple[Axis, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Of ``train.seed``; every point is run with each."""
    threads: int = Field(default=1, ge=1)
    """Of each run on this machine. It is of the grid because the order of additions depends on it."""
    max_flops: float | None = Field(default=None, gt=0)
    """Training operations that all points may take together; a grid that takes more is refused. None: not compared."""

    @model_validator(mode="after")
    def _names_are_different(self) -> Self:
        names = [axis.name for axis in self.axis]
        if len({*names, "seed"}) <= len(names):
            raise ValueError(f"axes need different names, none of them 'seed' (given: {', '.join(names)})")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"a seed is named twice (given: {', '.join(map(str, self.seeds))})")
        return self


@dataclass(frozen=True)
class Choice:
    """A point before its recipe is resolved.

    Attributes:
        coordinates: the name of its value on every axis.
        settings: keys of the recipe with their values.
        seed: of the run.
    """

    coordinates: dict[str, str]
    settings: dict[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """How messages and tables call it."""
        return ", ".join([*(f"{axis} {value}" for axis, value in self.coordinates.items()), f"seed {self.seed}"])


@dataclass(frozen=True)
class Point:
    """A run of a grid.

    Attributes:
        key: hash of its resolved recipe and of the threads of a run, under which its result is kept.
        name, coordinates, seed: as those of its :class:`Choice`.
        recipe: resolved, as TOML.
        parameters: of its model, embeddings among them.
        active_parameters: that one token meets, without embeddings and output projection.
        tokens: that it trains on; None where the recipe measures that as it runs.
        flops: of its training; None with the tokens.
    """

    key: str
    name: str
    coordinates: dict[str, str]
    seed: int
    recipe: str
    parameters: int
    active_parameters: int
    tokens: int | None
    flops: float | None


def read_grid(path: Path) -> Grid:
    """Read a grid's file.

    Raises:
        UserError: it is not there, or is no grid.
    """
    return Grid.parse(read_toml(path), str(path))


def expand(grid: Grid) -> list[Choice]:
    """The product of all axes and seeds, the last axis fastest and the seeds faster still."""
    shared = dict(_leaves(grid.settings))
    found = []
    for values in itertools.product(*(axis.choices().items() for axis in grid.axis)):
        coordinates = {axis.name: label for axis, (label, _) in zip(grid.axis, values, strict=True)}
        settings = dict(shared)
        for _, changed in values:
            settings |= changed
        found += [Choice(coordinates, settings, seed) for seed in grid.seeds]
    return found


def _leaves(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """``a.b`` and its value, of tables within tables."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _label(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
