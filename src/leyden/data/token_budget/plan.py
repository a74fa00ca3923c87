"""What a token budget takes of each part of a corpus, and how often it repeats, before anything is trained.

A corpus is parted into cells: a category (or source) and, within it, classes of quality. It begins uniform: every
category has the share of the budget that it has of the corpus. Within a category weight then moves to quality, and the
category keeps its share. Low-scored text is thinned, never wiped out; no class repeats more often than it can bear:
MiniMax-01 found low quality to hurt after 2 epochs, and high quality to help up to 4 (arXiv 2501.08313, section 4.1).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field

from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.core.files import atomic_file


class QualityClass(Config):
    """A class of documents within every category, by their scores."""

    name: str
    """What the class is called; the last part of its documents' group."""
    share: float = Field(gt=0, le=1)
    """Of a category's bytes, from the lowest scores up; over all classes they sum to 1."""
    weight: float = Field(gt=0)
    """How often a document is drawn beside those of the category's other classes, while no cap or floor binds."""
    max_epochs: float = Field(gt=0)
    """How often it may be repeated."""


CLASSES = (
    QualityClass(name="low", share=0.3, weight=0.5, max_epochs=2),
    QualityClass(name="middle", share=0.4, weight=1, max_epochs=3),
    QualityClass(name="high", share=0.3, weight=2, max_epochs=4),
)
"""The caps of low and high are the paper's; shares, weights and the middle's cap are ours, as it prints none."""


@dataclass(frozen=True)
class Cell:
    """A part of a corpus.

    Attributes:
        category: by subject, or the source.
        quality: the name of a :class:`QualityClass`.
        num_documents: unique documents.
        num_tokens: their tokens.
    """

    category: str
    quality: str
    num_documents: int
    num_tokens: float


@dataclass(frozen=True)
class CellPlan:
    """What a budget takes of a cell.

    Attributes:
        category, quality, num_documents, num_tokens: the cell's.
        tokens: of the budget.
        epochs: ``tokens / num_tokens``; below 1 the cell is thinned to that share of its tokens.
        max_epochs: what it may be repeated.
    """

    category: str
    quality: str
    num_documents: int
    num_tokens: float
    tokens: float
    epochs: float
    max_epochs: float

    @property
    def group(self) -> str:
        """The name of the token shards that hold it: ``category/quality``."""
        return f"{self.category}/{self.quality}"

    @property
    def kept_tokens(self) -> float:
        """What thinning leaves."""
        return self.num_tokens * min(1.0, self.epochs)

    @property
    def epochs_of_kept(self) -> float:
        """How often what is left repeats; at least 1."""
        return max(1.0, self.epochs)


@dataclass(frozen=True)
class MixturePlan:
    """A planned mixture.

    Attributes:
        tokens: the budget.
        largest_budget: the most that the repetition caps allow.
        limited_by: the category that would run short first.
        cells: in order of category, then from low to high quality.
    """

    tokens: float
    largest_budget: float
    limited_by: str
    cells: tuple[CellPlan, ...]

    def for_loader(self) -> dict[str, Any]:
        """The plan as plain values of a :class:`leyden.data.loader.mixture_schedule.MixtureSchedule`.

        It has each group's share of the tokens, and how often the group's documents may be used after thinning.
        """
        weights = {cell.group: cell.tokens / self.tokens for cell in self.cells}
        caps = {cell.group: max(cell.max_epochs, cell.epochs_of_kept) for cell in self.cells}
        return {"point": [{"weights": weights}], "max_epochs": caps}

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        with atomic_file(path) as part:
            part.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: it is missing or no plan.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return cls(**record | {"cells": tuple(CellPlan(**cell) for cell in record["cells"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is no mixture plan: {error}.") from None

    def summary(self) -> str:
        """What the budget asks beside what there is, in one line."""
        there, kept = (sum(values) for values in zip(*((c.num_tokens, c.kept_tokens) for c in self.cells), strict=True))
        told = f"{self.tokens:,.0f} tokens asked, about {there:,.0f} there; about {kept:,.0f} stay, each document once"
        most = max(self.cells, key=lambda cell: cell.epochs)
        if self.tokens <= kept * 1.001:
            return f"{told}; no document is repeated"
        return (
            f"{told}: to make up the budget a run repeats them {self.tokens / kept:.2f} times on the whole, "
            f"{most.group} the most ({most.epochs:.2f} times); its [stage.mixture] is in report.json, for_loader"
        )

    def table(self) -> str:
        """The plan in words, a line a cell."""
        width = max(len("category"), *(len(cell.category) for cell in self.cells))
        lines = [
            f"{self.tokens:,.0f} tokens; the repetition caps allow {self.largest_budget:,.0f}, then "
            f"'{self.limited_by}' runs short",
            f"{'category':<{width}}  quality     documents  tokens there are     tokens taken   share   epochs  "
            "at most",
        ]
        for cell in self.cells:
            lines.append(
                f"{cell.category:<{width}}  {cell.quality:<8}  {cell.num_documents:>11,}  {cell.num_tokens:>16,.0f}  "
                f"{cell.tokens:>15,.0f}  {cell.tokens / self.tokens:6.1%}  {cell.epochs:7.3f}  {cell.max_epochs:7g}"
            )
        return "\n".join(lines)


def plan_mixture(
    cells: Sequence[Cell],
    tokens: float | None = None,
    *,
    classes: Sequence[QualityClass] = CLASSES,
    shares: Mapping[str, float] | None = None,
    floor: float = 0.1,
) -> MixturePlan:
    """Divide a token budget.

    A category's tokens are divided so that every class is drawn ``weight`` times as often as one of weight 1, but no
    class more than its cap, nor less than ``floor`` of what a uniform draw would take of it.

    Args:
        cells: what there is; empty ones are left out.
        tokens: the budget. None: as many as there are.
        classes: of quality.
        shares: of the categories; they are scaled to sum to 1. None: each as much as it has of the corpus.
        floor: above 0, at most 1; what is left of the worst class, beside a uniform draw.

    Raises:
        UserError: the budget exceeds the caps (which category is short, and the largest budget), or the settings
            do not fit the cells.
    """
    cells = [cell for cell in cells if cell.num_tokens > 0]
    ranks = {one.name: rank for rank, one in enumerate(classes)}
    _check(cells, ranks, tokens, floor)
    sizes: dict[str, float] = {}
    for cell in cells:
        sizes[cell.category] = sizes.get(cell.category, 0) + cell.num_tokens
    total = sum(sizes.values())
    parts = _shares(sizes, shares)
    budget = total if tokens is None else tokens
    caps = {
        name: sum(c.num_tokens * classes[ranks[c.quality]].max_epochs for c in cells if c.category == name)
        for name in sizes
    }
    limits = {name: caps[name] / parts[name] for name in sizes}
    limited_by = min(sorted(limits), key=lambda name: limits[name])
    if budget > limits[limited_by] * (1 + 1e-12):
        raise UserError(_too_large(budget, parts, caps, limits[limited_by]))
    planned: list[CellPlan] = []
    for name in sorted(sizes):
        own = sorted((c for c in cells if c.category == name), key=lambda c: ranks[c.quality])
        rules = [classes[ranks[c.quality]] for c in own]
        for cell, rule, epochs in zip(own, rules, _fill(own, rules, budget * parts[name], floor), strict=True):
            planned.append(
                CellPlan(**asdict(cell), tokens=epochs * cell.num_tokens, epochs=epochs, max_epochs=rule.max_epochs)
            )
    return MixturePlan(float(budget), limits[limited_by], limited_by, tuple(planned))


def _fill(cells: Sequence[Cell], rules: Sequence[QualityClass], tokens: float, floor: float) -> list[float]:
    """Epochs of a category's classes: ``level * weight`` each, between floor and cap, at the level that takes
    ``tokens``."""
    sizes = np.array([cell.num_tokens for cell in cells])
    weights = np.array([rule.weight for rule in rules])
    caps = np.array([rule.max_epochs for rule in rules])
    floors = np.minimum(floor * tokens / sizes.sum(), caps)

    def taken(level: float) -> float:
        return float(sizes @ np.clip(level * weights, floors, caps))

    # Between two levels at which a class meets its floor or cap, what is taken is linear.
    levels = np.unique(np.concatenate([floors / weights, caps / weights]))
    amounts = np.array([taken(level) for level in levels])
    level = np.interp(tokens, amounts, levels)
    return np.clip(level * weights, floors, caps).tolist()


def _shares(sizes: Mapping[str, float], given: Mapping[str, float] | None) -> dict[str, float]:
    shares = sizes if given is None else given
    if set(shares) != set(sizes):
        missing, unknown = sorted(set(sizes) - set(shares)), sorted(set(shares) - set(sizes))
        raise UserError(
            f"the mixture's shares must name every category of the corpus; without a share: {missing or 'none'}, not "
            f"in the corpus: {unknown or 'none'}."
        )
    if min(shares.values()) <= 0:
        raise UserError("every category keeps a share: shares must be positive; leave its documents out instead.")
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def _check(cells: Sequence[Cell], ranks: Mapping[str, int], tokens: float | None, floor: float) -> None:
    if not cells:
        raise UserError("there are no documents to mix.")
    unknown = sorted({cell.quality for cell in cells} - set(ranks))
    if unknown:
        raise UserError(f"quality '{unknown[0]}' is no class of the mixture; there are: {', '.join(ranks)}.")
    if tokens is not None and tokens <= 0:
        raise UserError(f"a token budget must be positive; given: {tokens:,}.")
    if not 0 < floor <= 1:
        raise UserError(f"the floor must lie above 0 (nothing is wiped out) and be at most 1; given: {floor:g}.")


def _too_large(budget: float, parts: Mapping[str, float], caps: Mapping[str, float], largest: float) -> str:
    short = [
        f"'{name}' (needs {budget * parts[name]:,.0f}, has {caps[name]:,.0f} with every repetition)"
        for name in sorted(parts)
        if budget * parts[name] > caps[name]
    ]
    return (
        f"a budget of {budget:,.0f} tokens repeats documents more often than they bear. Short: {', '.join(short)}. The "
        f"largest possible budget is {largest:,.0f}; give more documents, other shares, or higher max_epochs."
    )
