"""The stage ``mixture``: thins what a token budget takes less than once, and says how often the rest repeats."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from leyden.core.files import atomic_file
from leyden.data.documents import Documents
from leyden.data.stage import Corpus, Stage
from leyden.data.token_budget.content import ContentColumns, contents_of, cut_at, gather_contents, repeats
from leyden.data.token_budget.plan import CLASSES, Cell, MixturePlan, QualityClass, plan_mixture

PLAN, CUTS = "plan.json", "cuts.json"
"""In the stage's work: a :class:`MixturePlan`, and what tells a document's class and repeats."""


class PlanMixture(Stage):
    """Decide how often each document is used for a token budget: see :func:`leyden.data.token_budget.plan_mixture`.

    A document gets ``scores["repeats"]`` (how often) and, in its metadata, ``group`` (``category/quality``: the token
    shards that it belongs to). One that is not used at all leaves. Within a class the content of a document decides.
    """

    WHOLE_CORPUS: ClassVar[bool] = True

    kind: Literal["mixture"] = "mixture"
    tokens: int | None = Field(default=None, ge=1)
    """The budget. None: as many as there are."""
    bytes_per_token: float = Field(default=4.0, gt=0)
    """UTF-8 bytes that a token stands for, of the tokenizer that will be used; MiniMax-01's target is near 4."""
    scores: tuple[str, ...] = ("knowledge", "helpfulness")
    """Whose mean is the quality. A document without any is taken for its category's median."""
    category: str | None = "category"
    """Key of the category in the metadata. None, and for documents without one: the source."""
    classes: tuple[QualityClass, ...] = Field(default=CLASSES, min_length=1)
    """From the lowest quality to the highest."""
    shares: dict[str, float] | None = None
    """Of the budget, by category. None: each as much as it has of the corpus."""
    floor: float = Field(default=0.1, gt=0, le=1)
    """Nothing is wiped out: of the worst class at least this part of what a uniform draw would take."""

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        names = [one.name for one in self.classes]
        if len(set(names)) < len(names):
            raise ValueError(f"two classes have one name: {', '.join(names)}")
        if abs(sum(one.share for one in self.classes) - 1) > 1e-6:
            raise ValueError("the shares of the classes must sum to 1")
        return self

    def prepare(self, corpus: Corpus) -> None:
        """See what there is, plan, and write the plan and the cuts that carry it out."""
        contents = gather_contents(corpus, self.scores, self.category)
        bounds = {name: self._bounds(contents, name) for name in np.unique(contents.categories).tolist()}
        quality = _quality(contents, bounds)
        inside = {
            (name, rank): np.flatnonzero((contents.categories == name) & (quality == rank))
            for name in bounds
            for rank in range(len(self.classes))
        }
        plan = self.plan(contents, inside)
        cuts: dict[str, Any] = {"bounds": bounds, "cells": {}}
        for cell in plan.cells:
            rank = [one.name for one in self.classes].index(cell.quality)
            rows = inside[cell.category, rank]
            cut = cut_at(contents.draws[rows], contents.num_bytes[rows], cell.epochs % 1) if cell.epochs % 1 else 0.0
            times = repeats(contents.draws[rows], cell.epochs, cut)
            cuts["cells"].setdefault(cell.category, {})[str(rank)] = {
                "epochs": cell.epochs,
                "cut": cut,
                "asked_tokens": cell.tokens,
                "achieved_tokens": float(times @ contents.num_bytes[rows]) / self.bytes_per_token,
                "documents_by_repeats": {str(n): int(np.sum(times == n)) for n in np.unique(times).tolist()},
            }
        with atomic_file(corpus.work / CUTS) as part:
            part.write_text(json.dumps(cuts, ensure_ascii=False), encoding="utf-8")
        plan.save(corpus.work / PLAN)

    def plan(self, contents: ContentColumns, inside: Mapping[tuple[str, int], np.ndarray]) -> MixturePlan:
        """The plan for documents, of which ``inside`` says which are in each category and class."""
        cells = [
            Cell(
                category=name,
                quality=self.classes[rank].name,
                num_documents=len(rows),
                num_tokens=float(contents.num_bytes[rows].sum()) / self.bytes_per_token,
            )
            for (name, rank), rows in inside.items()
        ]
        return plan_mixture(cells, self.tokens, classes=self.classes, shares=self.shares, floor=self.floor)

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Say how often each document is used; drop those that are not."""
        cuts = json.loads((work / CUTS).read_text(encoding="utf-8"))
        contents = contents_of(documents, self.scores, self.category)
        quality = _quality(contents, cuts["bounds"])
        times, reasons, details, groups = [], [], [], []
        for row, (name, rank) in enumerate(zip(contents.categories.tolist(), quality.tolist(), strict=True)):
            # A document without bytes can be alone in its cell, which then has no plan.
            cell = cuts["cells"].get(name, {}).get(str(rank), {"epochs": 0.0, "cut": 0.0})
            count = int(repeats(contents.draws[row], cell["epochs"], cell["cut"]))
            label = self.classes[rank].name
            groups.append(f"{name}/{label}")
            times.append(float(count))
            reasons.append(None if count else f"mixture: {label} quality thinned")
            details.append(
                f"category '{name}', score {contents.scores[row]:.4g}; {cell['epochs']:.4f} of its class are used, "
                f"those that draw less than {cell['cut']:.4f}; it drew {contents.draws[row]:.4f}"
            )
        with_groups = documents.with_column("metadata", _with_groups(documents.column("metadata"), groups))
        return with_groups.score("repeats", times).drop(reasons, details)

    def summary(self, work: Path) -> str:
        """How much of the budget is there, and how often a run has to repeat it."""
        return MixturePlan.load(work / PLAN).summary()

    def report(self, work: Path) -> dict[str, object]:
        """The plan, and for each cell what was achieved of what was asked."""
        cuts = json.loads((work / CUTS).read_text(encoding="utf-8"))
        achieved = {
            f"{name}/{self.classes[int(rank)].name}": cell
            for name, ranks in cuts["cells"].items()
            for rank, cell in ranks.items()
        }
        plan = MixturePlan.load(work / PLAN)
        return {"table": plan.table(), "for_loader": plan.for_loader(), "achieved": achieved}

    def _bounds(self, contents: ContentColumns, category: str) -> list[float | None]:
        """The scores from which the second, third, ... class of a category begin, and at last its median (None: none).

        Classes are cut by bytes; documents of equal score share a class.
        """
        rows = np.flatnonzero((contents.categories == category) & ~np.isnan(contents.scores))
        if not len(rows):
            return [None] * len(self.classes)
        scores, place = np.unique(contents.scores[rows], return_inverse=True)
        sizes = np.bincount(place, contents.num_bytes[rows])
        middle = (np.cumsum(sizes) - sizes / 2) / max(sizes.sum(), 1)  # where the middle of each score's bytes lies
        borders = np.cumsum([one.share for one in self.classes])[:-1]
        first = np.searchsorted(middle, [*borders, 0.5])
        return [float(scores[at]) if at < len(scores) else None for at in first.tolist()]


def _quality(contents: ContentColumns, bounds: Mapping[str, list[float | None]]) -> np.ndarray:
    """[D] int64, the rank of each document's class."""
    ranks = np.zeros(len(contents), np.int64)
    for name in np.unique(contents.categories).tolist():
        rows = np.flatnonzero(contents.categories == name)
        *borders, median = bounds[name]
        scores = contents.scores[rows]
        # A category without any score is all of one class: the middle one.
        scores = np.where(np.isnan(scores), np.nan if median is None else median, scores)
        edges = [np.inf if border is None else border for border in borders]
        rank = np.searchsorted(edges, scores, side="right")
        ranks[rows] = np.where(np.isnan(scores), len(edges) // 2, rank)
    return ranks


def _with_groups(metadata: list[str | None], groups: list[str]) -> list[str]:
    return [
        json.dumps((json.loads(text) if text else {}) | {"group": group}, ensure_ascii=False)
        for text, group in zip(metadata, groups, strict=True)
    ]
