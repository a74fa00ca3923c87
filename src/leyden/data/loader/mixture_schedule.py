"""What a stage mixes: weights of sources and of classes of lengths, at marks along the stage.

A mark is a step, a number of tokens or a share of the stage; between two marks every share changes linearly. Two short
forms say what long-context stages do (MiniMax-01, arXiv 2501.08313, section 4.3.2): ``transition`` begins with the
mixture of the stage before and changes it linearly, and ``late`` adds a source for the last part of the stage.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, model_validator

from leyden.core.config import Config
from leyden.core.errors import UserError, suggest


class MixturePoint(Config):
    """The mixture at one mark: ``step``, ``tokens`` or ``share``; without a mark, at the beginning."""

    step: int | None = Field(default=None, ge=0)
    """Optimizer step of the stage, from 0."""
    tokens: int | None = Field(default=None, ge=0)
    """Tokens of the stage before it."""
    share: float | None = Field(default=None, ge=0, le=1)
    """The share of the stage before it."""
    weights: dict[str, float] = Field(min_length=1)
    """Of tokens, by source; their sum does not matter, and a source that is not named has none."""
    lengths: tuple[float, ...] | None = None
    """Shares of tokens, by class of length, shortest first; they sum to 1. None: as the sources have them."""

    @model_validator(mode="after")
    def _one_mark(self) -> Self:
        if [self.step, self.tokens, self.share].count(None) < 2:
            raise ValueError("a point of a mixture has one mark: step, tokens or share of the stage, not several")
        for what, weights in (("weights", tuple(self.weights.values())), ("lengths", self.lengths)):
            if weights is not None and (min(weights, default=0) < 0 or not sum(weights)):
                raise ValueError(f"{what} must not be negative, and not all zero; given {weights}")
        return self


class LateAddition(Config):
    """A source that is added for the last part of a stage; everything else makes room for it in proportion."""

    source: str
    share: float = Field(gt=0, lt=1)
    """Of the tokens, in that part."""
    last: float = Field(gt=0, le=1)
    """The part, as a share of the stage, at its end."""


class MixtureSchedule(Config):
    """Weights of sources along a stage: the ``mixture`` table of a recipe's stage."""

    point: tuple[MixturePoint, ...] = Field(min_length=1)
    """In order; the first holds before it as well, the last after it."""
    length_bounds: tuple[int, ...] = ()
    """The most tokens of each class of lengths but the last: ``[8192, 32768]`` makes three."""
    transition: float = Field(default=0.0, ge=0, le=1)
    """The share of the stage, at its beginning, in which the mixture of the stage before turns linearly into this."""
    late: tuple[LateAddition, ...] = ()
    max_epochs: dict[str, float] = Field(default_factory=dict)
    """How often the documents of a source may be used in the stage: low quality 2, high 4, say. No bound where it is
    not named."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(second <= first for first, second in itertools.pairwise((0, *self.length_bounds))):
            raise ValueError(f"length_bounds must be positive and rise; given {list(self.length_bounds)}")
        given = {None if point.lengths is None else len(point.lengths) for point in self.point}
        if len(given) > 1 or not given <= {None, self.num_classes}:
            raise ValueError(
                f"{len(self.length_bounds)} length_bounds make {self.num_classes} classes; give every point so many "
                "lengths, or none"
            )
        for number, point in enumerate(self.point):
            if point.lengths is not None and not math.isclose(sum(point.lengths), 1, abs_tol=1e-6):
                raise ValueError(
                    f"the lengths of point {number} are shares of the tokens and must sum to 1; given "
                    f"{list(point.lengths)}, which sum to {sum(point.lengths):g}"
                )
        late = sum(addition.share for addition in self.late)
        if late >= 1:
            raise ValueError(f"the shares of late additions must sum to less than 1; given {late:g}")
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
        """Every source that is named, in order of name."""
        late = {addition.source for addition in self.late}
        return sorted({name for point in self.point for name in point.weights} | late)

    def without(self, source: str) -> "MixtureSchedule":
        """The same, with ``source`` left out; where nothing else is mixed at a point, the same as it is."""
        points = [{name: w for name, w in point.weights.items() if name != source} for point in self.point]
        if not all(any(weights.values()) for weights in points):
            return self
        return self.model_copy(
            update={
                "point": tuple(p.model_copy(update={"weights": w}) for p, w in zip(self.point, points, strict=True)),
                "late": tuple(addition for addition in self.late if addition.source != source),
                "max_epochs": {name: cap for name, cap in self.max_epochs.items() if name != source},
            }
        )

    @property
    def has_shares_of_the_stage(self) -> bool:
        """Whether another length of the stage moves a mark."""
        return bool(self.transition or self.late) or any(point.share is not None for point in self.point)

    def classes(self) -> Iterator[tuple[int, int | None]]:
        """Each class as (more than, at most) tokens; None sets no bound."""
        bounds = (0, *self.length_bounds)
        yield from zip(bounds, (*self.length_bounds, None), strict=True)

    def timed(
        self,
        total_tokens: int,
        tokens_before: Callable[[int], int] | None = None,
        before: "TimedMixture | None" = None,
    ) -> "TimedMixture":
        """The same with every mark in tokens of the stage.

        Args:
            total_tokens: of the stage.
            tokens_before: tokens of the stage before a step; None where no mark is a step but step 0.
            before: the mixture of the stage before; None: there is none.

        Raises:
            UserError: the marks do not rise, or there is nothing that a transition could begin from.
        """
        points = tuple((_tokens_of(point, total_tokens, tokens_before), point) for point in self.point)
        marks = [mark for mark, _ in points]
        if any(second <= first for first, second in itertools.pairwise(marks)):
            raise UserError(
                f"the points of a mixture must be in order, each at a later mark; given marks at {marks} tokens."
            )
        if self.transition:
            self._check_transition(before)
        return TimedMixture(
            schedule=self,
            total_tokens=total_tokens,
            points=points,
            late=tuple((total_tokens - round(late.last * total_tokens), late) for late in self.late),
            transition_tokens=round(self.transition * total_tokens),
            before=before if self.transition else None,
        )

    def _check_transition(self, before: "TimedMixture | None") -> None:
        if before is None:
            raise UserError(
                "mixture.transition begins with the mixture of the stage before, and this is the first stage; leave it "
                "out."
            )
        theirs = before.schedule
        if any(point.lengths for point in theirs.point) and theirs.length_bounds != self.length_bounds:
            raise UserError(
                f"mixture.transition begins with the mixture of the stage before, whose length_bounds are "
                f"{list(theirs.length_bounds)} and not {list(self.length_bounds)}; give both stages the same classes."
            )


@dataclass(frozen=True, eq=False)
class TimedMixture:
    """A :class:`MixtureSchedule` with every mark in tokens of its stage.

    Attributes:
        schedule: what was said.
        total_tokens: of the stage.
        points: with the tokens before each, rising.
        late: with the tokens from which on each is added.
        transition_tokens: in which the mixture of ``before`` turns into this one.
        before: the mixture of the stage before; None without a transition.
    """

    schedule: MixtureSchedule
    total_tokens: int
    points: tuple[tuple[int, MixturePoint], ...]
    late: tuple[tuple[int, LateAddition], ...]
    transition_tokens: int
    before: "TimedMixture | None"

    def described(self) -> dict[str, Any]:
        """As JSON values, all that shares depend on."""
        return {
            "points": [[mark, point.weights, point.lengths] for mark, point in self.points],
            "late": [[mark, late.source, late.share] for mark, late in self.late],
            "length_bounds": self.schedule.length_bounds,
            "transition_tokens": self.transition_tokens,
            "before": None if self.before is None else [self.before.total_tokens, self.before.described()],
        }


def _tokens_of(point: MixturePoint, total_tokens: int, tokens_before: Callable[[int], int] | None) -> int:
    if point.share is not None:
        return round(point.share * total_tokens)
    if point.step:
        assert tokens_before is not None, "who says steps says where they are"
        return tokens_before(point.step)
    return point.tokens or 0


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
