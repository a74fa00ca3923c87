"""The share of every component of a mixture, a source's documents of one class of lengths, at every moment.

Where classes have shares, these are met exactly, and within a class the sources that have documents in it share by
their weights; else a source's weight goes to its classes by their tokens. A late addition takes its share of all, its
documents as it has them, and the rest is as it would be without it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from leyden.core.errors import UserError
from leyden.data.loader.mixture_schedule import MixturePoint, MixtureSchedule, TimedMixture

ONE = 1 << 40
"""Shares are whole parts of it."""


@dataclass(frozen=True)
class Component:
    """What one share is of: the documents of one source and one class of lengths.

    Attributes:
        source: its name.
        length_class: from 0.
        tokens: that there are.
    """

    source: str
    length_class: int
    tokens: int


class Shares:
    """The share of every component along a stage.

    Raises:
        UserError: a class or a source has weight but no documents; the message names the key.
    """

    def __init__(self, mixture: TimedMixture, components: Sequence[Component]) -> None:
        self._marks = [mark for mark, _ in mixture.points]
        self._points = [
            _of_point(f"mixture.point.{number}", point, mixture.schedule, components)
            for number, (_, point) in enumerate(mixture.points)
        ]
        self._late = [(mark, late.share, _of_source(late.source, components)) for mark, late in mixture.late]
        self._transition = mixture.transition_tokens
        self._begin = [] if mixture.before is None else _end_of(mixture.before, components)
        self._borders = sorted({0, self._transition, *self._marks, *(mark for mark, _, _ in self._late)})
        self._parts_at = lru_cache(maxsize=64)(self._parts)

    def at(self, tokens: int) -> np.ndarray:
        """After so many tokens of the stage: [components] int64, whole parts of :data:`ONE` that add up to it."""
        begin = self._borders[bisect_right(self._borders, tokens) - 1]
        moves = begin < self._transition or 0 < bisect_right(self._marks, begin) < len(self._marks)
        return self._parts_at(tokens if moves else begin)

    def exactly(self, tokens: int) -> list[float]:
        """The same as numbers that add up to 1, up to rounding."""
        shares = self._own(tokens)
        if tokens < self._transition:
            shares = _between(self._begin, shares, tokens / self._transition)
        return shares

    def _own(self, tokens: int) -> list[float]:
        later = bisect_right(self._marks, tokens)
        if later in (0, len(self._marks)):
            shares = self._points[min(later, len(self._marks) - 1)]
        else:
            begin, end = self._marks[later - 1], self._marks[later]
            shares = _between(self._points[later - 1], self._points[later], (tokens - begin) / (end - begin))
        added = [(share, of_source) for mark, share, of_source in self._late if mark <= tokens]
        left = 1 - sum(share for share, _ in added)
        shares = [left * share for share in shares]
        for share, of_source in added:
            shares = [a + share * b for a, b in zip(shares, of_source, strict=True)]
        return shares

    def _parts(self, tokens: int) -> np.ndarray:
        parts = [round(share * ONE) for share in self.exactly(tokens)]
        parts[parts.index(max(parts))] += ONE - sum(parts)
        return np.array(parts, np.int64)


def _between(first: Sequence[float], second: Sequence[float], part: float) -> list[float]:
    return [a + (b - a) * part for a, b in zip(first, second, strict=True)]


def _end_of(mixture: TimedMixture, components: Sequence[Component]) -> list[float]:
    """What a stage ends with, as shares of the components of the next."""
    try:
        return Shares(mixture, components).exactly(mixture.total_tokens)
    except UserError as error:
        raise UserError(
            f"mixture.transition begins with the mixture of the stage before, which the data of this stage cannot give "
            f"(its {error}) Give this stage the same sources, or leave transition out."
        ) from None


def _of_source(name: str, components: Sequence[Component]) -> list[float]:
    """The documents of a source, as it has them."""
    total = sum(c.tokens for c in components if c.source == name)
    if not total:
        raise UserError(f"mixture.late names source '{name}', which has no documents; give it some, or leave it out.")
    return [c.tokens / total if c.source == name else 0.0 for c in components]


def _of_point(key: str, point: MixturePoint, schedule: MixtureSchedule, components: Sequence[Component]) -> list[float]:
    """Plain floats in a fixed order of operations: the same on every machine."""
    total_of = {c.source: sum(o.tokens for o in components if o.source == c.source) for c in components}
    for name, weight in point.weights.items():
        if weight and not total_of.get(name):
            raise UserError(f"{key}.weights: source '{name}' has no documents; set its weight to 0, or give it some.")
    if point.lengths is None:
        raw = [point.weights.get(c.source, 0.0) * c.tokens / total_of[c.source] for c in components]
    else:
        raw = [0.0] * len(components)
        for number, ((above, up_to), share) in enumerate(zip(schedule.classes(), point.lengths, strict=True)):
            members = [n for n, c in enumerate(components) if c.length_class == number]
            total = sum(point.weights.get(components[n].source, 0.0) for n in members)
            if share and not total:
                bound = f"more than {above:,}" + ("" if up_to is None else f" and at most {up_to:,}")
                raise UserError(
                    f"{key}.lengths asks {share:g} of the tokens of documents of {bound} tokens, and no source that "
                    "has a weight has such documents; set it to 0, give a source such documents, or change "
                    "length_bounds."
                )
            for n in members:
                raw[n] = share * point.weights.get(components[n].source, 0.0) / total if total else 0.0
    total = sum(raw)
    return [share / total for share in raw]
