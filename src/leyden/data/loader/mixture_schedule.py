"""Which source each sequence of a mixture is from: asked shares, that change over steps, met at every moment.

A sequence holds documents of one source and one class of lengths, so a share of sequences is a share of tokens (to
within the padding, below 1 %). Sources take turns: each sequence every source earns its share of one sequence, and the
one to which most is owed comes next and pays for it. No source is ever a whole sequence ahead of what was asked of it,
and lags are as small as its share allows, which random draws are not: after n of them a share s is off by
sqrt(n s (1 - s)). All of it is integers, so every machine finds the same order.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from leyden.core.config import Config
from leyden.core.errors import UserError, suggest

_ONE = 1 << 40  # shares are whole parts of it
_CHUNK = 4096  # sequences; where each begins is kept, and batches are found from there


class MixturePoint(Config):
    """The mixture at one step."""

    step: int = Field(default=0, ge=0)
    """Optimizer step, from 0; between two points every share changes linearly."""
    weights: dict[str, float] = Field(min_length=1)
    """Of tokens, by source; their sum does not matter, and a source that is not named has none."""
    lengths: tuple[float, ...] | None = None
    """Of tokens, by class of length, shortest first; None: as the sources have them."""

    @model_validator(mode="after")
    def _positive(self) -> Self:
        for what, weights in (("weights", tuple(self.weights.values())), ("lengths", self.lengths)):
            if weights is not None and (min(weights) < 0 or not sum(weights)):
                raise ValueError(f"{what} must not be negative, and not all zero; given {weights}")
        return self


class MixtureSchedule(Config):
    """Weights of sources over the steps of a stage: a ``mixture`` table of a recipe's stage."""

    point: tuple[MixturePoint, ...] = Field(min_length=1)
    """In order of steps; the first holds before it as well, the last after it."""
    length_bounds: tuple[int, ...] = ()
    """The most tokens of each class of lengths but the last: ``[8192, 32768]`` makes three."""
    max_epochs: dict[str, float] = Field(default_factory=dict)
    """How often the documents of a source may be used in the stage: low quality 2, high 4, say. No bound where it is
    not named."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        steps = [point.step for point in self.point]
        if any(second <= first for first, second in itertools.pairwise(steps)):
            raise ValueError(f"the steps of a mixture's points must rise; given {steps}")
        if any(second <= first for first, second in itertools.pairwise((0, *self.length_bounds))):
            raise ValueError(f"length_bounds must be positive and rise; given {list(self.length_bounds)}")
        given = {None if point.lengths is None else len(point.lengths) for point in self.point}
        if len(given) > 1 or not given <= {None, self.num_classes}:
            raise ValueError(
                f"{len(self.length_bounds)} length_bounds make {self.num_classes} classes; give every point so many "
                "lengths, or none"
            )
        for name, cap in self.max_epochs.items():
            if name not in self.sources:
                raise ValueError(f"max_epochs names '{name}', which has no weight{suggest(name, self.sources)}")
            if cap <= 0:
                raise ValueError(f"max_epochs of '{name}' must be positive; given {cap}")
        return self

    @property
    def num_classes(self) -> int:
        """Classes of lengths."""
        return len(self.length_bounds) + 1

    @property
    def sources(self) -> list[str]:
        """Every source that has a weight at some step, in order of name."""
        return sorted({name for point in self.point for name in point.weights})

    def classes(self) -> Iterator[tuple[int, int | None]]:
        """Each class as (more than, at most) tokens; None sets no bound."""
        bounds = (0, *self.length_bounds)
        yield from zip(bounds, (*self.length_bounds, None), strict=True)


@dataclass(frozen=True)
class Component:
    """What one weight is of: the documents of one source and one class of lengths.

    Attributes:
        source: its name.
        length_class: from 0.
        tokens: that there are.
    """

    source: str
    length_class: int
    tokens: int


class Shares:
    """The share of every component at every step.

    Where classes have weights, these are met exactly, and within a class the sources that have documents in it share by
    theirs; else a source's weight goes to its classes by their tokens.

    Raises:
        UserError: at some point a class or a source has weight but no documents.
    """

    def __init__(self, mixture: MixtureSchedule, components: Sequence[Component]) -> None:
        self._steps = [point.step for point in mixture.point]
        self._points = [_shares(point, components) for point in mixture.point]
        self.at = lru_cache(maxsize=64)(self._at)

    def _at(self, step: int) -> np.ndarray:
        """[components] int64, whole parts of ``_ONE`` that add up to it."""
        later = next((n for n, at in enumerate(self._steps) if at > step), len(self._steps))
        if later in (0, len(self._steps)):
            shares = self._points[min(later, len(self._steps) - 1)]
        else:
            begin, end = self._steps[later - 1], self._steps[later]
            part = (step - begin) / (end - begin)
            shares = [a + (b - a) * part for a, b in zip(*self._points[later - 1 : later + 1], strict=True)]
        parts = [round(share * _ONE) for share in shares]
        parts[parts.index(max(parts))] += _ONE - sum(parts)
        return np.array(parts, np.int64)


def _shares(point: MixturePoint, components: Sequence[Component]) -> list[float]:
    """Plain floats in a fixed order of operations: the same on every machine."""
    if point.lengths is None:
        total_of = {c.source: sum(o.tokens for o in components if o.source == c.source) for c in components}
        raw = [point.weights.get(c.source, 0.0) * c.tokens / total_of[c.source] for c in components]
    else:
        raw = [0.0] * len(components)
        for number, weight in enumerate(point.lengths):
            members = [n for n, c in enumerate(components) if c.length_class == number]
            total = sum(point.weights.get(components[n].source, 0.0) for n in members)
            if weight and not total:
                raise UserError(
                    f"step {point.step}: no source that has a weight has documents of length class {number + 1}, whose "
                    "weight is not zero; set it to 0, or give longer or shorter documents."
                )
            for n in members:
                raw[n] = weight * point.weights.get(components[n].source, 0.0) / total if total else 0.0
    total = sum(raw)
    return [share / total for share in raw]


class Turns:
    """Which component each sequence is from, and which of that component's sequences it is.

    Args:
        shares: at every step.
        num_components: how many there are.
        sequences_per_step: sequences of an optimizer step, within which shares do not change.
    """

    def __init__(self, shares: Shares, num_components: int, sequences_per_step: int) -> None:
        self._shares = shares
        self._per_step = sequences_per_step
        nothing = np.zeros(num_components, np.int64)
        self._begins = [(nothing, nothing)]  # of each chunk: what each component is owed, and its sequences before
        self._chunk = lru_cache(maxsize=8)(self._make)

    def of(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """For ``count`` sequences from ``first`` on, the component of each [count], and each one's sequences before."""
        chosen = []
        start, end = first // _CHUNK * _CHUNK, first + count
        for chunk in range(first // _CHUNK, -(-end // _CHUNK)):
            chosen.append(self._chunk(chunk))
        before = self._begins[first // _CHUNK][1]
        turns = np.concatenate(chosen)
        skipped = turns[: first - start]
        return turns[first - start : end - start], before + np.bincount(skipped, minlength=len(before))

    def before(self, sequence: int) -> np.ndarray:
        """How many of the sequences before number ``sequence`` are of each component: [components] int64."""
        return self.of(sequence, 1)[1]

    def _make(self, chunk: int) -> np.ndarray:
        while len(self._begins) <= chunk:
            self._run(len(self._begins) - 1)
        return self._run(chunk)

    def _run(self, chunk: int) -> np.ndarray:
        """The turns of a chunk; where the next begins is kept."""
        owed, before = self._begins[chunk]
        owed = owed.copy()
        chosen = np.empty(_CHUNK, np.int64)
        for place in range(_CHUNK):
            owed += self._shares.at((chunk * _CHUNK + place) // self._per_step)
            turn = int(owed.argmax())
            owed[turn] -= _ONE
            chosen[place] = turn
        if len(self._begins) == chunk + 1:
            self._begins.append((owed, before + np.bincount(chosen, minlength=len(owed))))
        return chosen


def check_names(mixture: MixtureSchedule, sources: Mapping[str, object]) -> None:
    """Every weight is of a source, and every source has a weight.

    Raises:
        UserError: which is not so.
    """
    for name in mixture.sources:
        if name not in sources:
            raise UserError(f"the mixture names '{name}', which is no source{suggest(name, sources)}")
    unused = sorted(set(sources) - set(mixture.sources))
    if unused:
        raise UserError(f"the mixture has no weight for {', '.join(unused)}; give one (0 leaves a source out).")
