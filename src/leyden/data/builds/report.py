"""``report/index.html`` and ``report/report.json`` of a build: funnel, reasons, lengths, languages, scores, samples.

Made from the build's files alone, so that it can be made again at any time.
"""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leyden.core.files import atomic_file
from leyden.core.page import ACCENT, MUTED, Plot, drawing, write_page
from leyden.data.builds.directory import Build, Counts
from leyden.data.builds.recipe import BuildRecipe
from leyden.data.builds.rejects import not_read, reject_lines
from leyden.data.builds.survey import Sample, Survey, survey
from leyden.data.engine import DataEngine

_SHOWN_REJECTS = 20
_SHOWN_ROWS = 30
"""Rows of a table that could be endless."""


@dataclass(frozen=True)
class FunnelRow:
    """One stage of the funnel, as the page shows it.

    Attributes:
        name: ``NN-kind``.
        counts: over all shards.
        share: of the bytes that were read, what is still there, in percent.
        rate: bytes a second of processor time, preparation not counted.
        prepare_seconds: by the clock, in which the stage saw the whole corpus.
    """

    name: str
    counts: Counts
    share: float
    rate: float
    prepare_seconds: float

    @property
    def reasons(self) -> list[tuple[str, int, int]]:
        """Reason, documents, bytes; the commonest first."""
        rows = [(reason, tally.documents, tally.bytes) for reason, tally in self.counts.dropped.items()]
        return sorted(rows, key=lambda row: (-row[1], row[0]))


def funnel(build: Build) -> list[FunnelRow]:
    """The stages of a build, in order."""
    stages = build.stages()
    totals = [stage.total() for stage in stages]
    read = max(totals[0].kept.bytes, 1)
    return [
        FunnelRow(
            name=stage.name,
            counts=counts,
            share=100 * counts.kept.bytes / read,
            rate=counts.given.bytes / max(counts.seconds, 1e-9),
            prepare_seconds=stage.prepare_seconds(),
        )
        for stage, counts in zip(stages, totals, strict=True)
    ]


def write_report(recipe: BuildRecipe, directory: Path, engine: DataEngine) -> Path:
    """Write ``directory/report/`` and return the path of its page."""
    build = Build.open(directory)
    stages = build.stages()
    rows = funnel(build)
    first, last = survey(stages[0], engine), survey(stages[-1], engine)
    left = {stage.name: survey(stage, engine, dropped=True, samples=2).samples for stage in stages[1:]}
    told = {place.name: stage.report(place.work) for stage, place in zip(recipe.stage, stages[1:], strict=True)}
    plots = [plot for stage, place in zip(recipe.stage, stages[1:], strict=True) for plot in stage.plots(place.work)]
    aside, skipped = Counter(rows[0].counts.rejected), not_read(stages[0])
    facts = {
        "funnel": [
            {"stage": row.name, "share": row.share, "prepare_seconds": row.prepare_seconds, **asdict(row.counts)}
            for row in rows
        ],
        "files": {"read": rows[0].counts.files, "set_aside": aside, "not_read": skipped},
        "read": _numbers(first),
        "kept": _numbers(last),
        "stages": told,
        "recipe": json.loads(recipe.model_dump_json()),
    }
    with atomic_file(directory / "report" / "report.json") as part:
        part.write_text(json.dumps(facts, indent=1, default=str), encoding="utf-8")
    page = {
        "title": directory.resolve().name,
        "sections": ["Funnel", "Reasons", "Kept", "Stages", "Samples", "Unread", "Recipe"],
        "numbers": _headline(rows, aside, skipped),
        "funnel": rows,
        "kept": _kept_plots(first, last),
        "tables": [(name, _table(last, name)) for name in ("source", "language")],
        "told": [(name, _flat(told[name])) for name in told if told[name]],
        "plots": plots,
        "samples": {name: found[:3] for name, found in last.samples.items()},
        "left": _left(left),
        "rejects": [("Set aside", aside.most_common()), ("Found in folders and not read", skipped.most_common())],
        "examples": list(itertools.islice(reject_lines(stages[0]), _SHOWN_REJECTS)),
        "recipe": (directory / "recipe.toml").read_text(encoding="utf-8"),
    }
    path = directory / "report" / "index.html"
    write_page(path, Path(__file__).with_name("report.html"), page)
    return path


def _headline(rows: Sequence[FunnelRow], aside: Counter[str], skipped: Counter[str]) -> list[tuple[str, str, str]]:
    read, kept = rows[0].counts.kept, rows[-1].counts.kept
    return [
        (f"{read.documents:,}", "", "documents read"),
        (f"{kept.documents:,}", f"{100 * kept.documents / max(read.documents, 1):.1f} %", "documents kept"),
        (f"{read.bytes / 1e6:,.1f}", "MB", "text read"),
        (f"{kept.bytes / 1e6:,.1f}", "MB", "text kept"),
        (f"{rows[0].counts.files:,}", "", "files read"),
        (f"{aside.total():,}", "", "set aside, unread"),
        (f"{skipped.total():,}", "", "files and folders not read"),
        (f"{sum(row.counts.seconds for row in rows):,.0f}", "s", "of processor time"),
    ]


def _kept_plots(first: Survey, last: Survey) -> list[Plot]:
    plots = [Plot("Document lengths, read (grey) and kept", _lengths(first, last), wide=False)]
    for name, values in last.scores.items():
        plots.append(Plot(f"Score: {name}", _histogram(name, values), "of a sample of the kept documents"))
    return plots


def _lengths(first: Survey, last: Survey) -> str:
    with drawing("lengths") as drawn:
        powers = range(max([*first.lengths, 1]) + 1)
        for counts, color in ((first.lengths, MUTED), (last.lengths, ACCENT)):
            drawn.axes.bar(list(powers), [counts[p] for p in powers], width=0.8, color=color, alpha=0.6)
        drawn.axes.set_xlabel("bytes, powers of two")
        drawn.axes.set_ylabel("documents")
    return drawn.svg


def _histogram(name: str, values: Sequence[float]) -> str:
    with drawing(f"score-{name}") as drawn:
        drawn.axes.hist(np.asarray(values), bins=40, color=ACCENT)
        drawn.axes.set_xlabel(name)
        drawn.axes.set_ylabel("documents")
    return drawn.svg


def _table(kept: Survey, name: str) -> list[tuple[str, int, float]]:
    """Value, documents, and percent of the bytes; the largest first."""
    total = max(kept.bytes[name].total(), 1)
    order = sorted(kept.bytes[name], key=lambda value: (-kept.bytes[name][value], value))[:_SHOWN_ROWS]
    return [(value or "unknown", kept.documents[name][value], 100 * kept.bytes[name][value] / total) for value in order]


def _left(left: Mapping[str, Mapping[str, Sequence[Sample]]]) -> list[tuple[str, str, Sequence[Sample]]]:
    return [(stage, reason, found[:2]) for stage, reasons in left.items() for reason, found in sorted(reasons.items())]


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested facts as rows of a table; long lists are cut."""
    if isinstance(value, Mapping):
        rows = [_flat(inner, f"{name} {key}".strip()) for key, inner in value.items()]
        return list(itertools.chain.from_iterable(rows))
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        rows = [_flat(item, f"{name} {index + 1}") for index, item in enumerate(value[:_SHOWN_ROWS])]
        return list(itertools.chain.from_iterable(rows))
    if isinstance(value, list | tuple):
        return [(name, ", ".join(map(_short, value[:_SHOWN_ROWS])))]
    return [(name, _short(value))]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _numbers(found: Survey) -> dict[str, Any]:
    return {
        "documents": found.documents,
        "bytes": found.bytes,
        "lengths": {str(2**power): found.lengths[power] for power in sorted(found.lengths)},
        "scores": {
            name: dict(zip(("p5", "p50", "p95"), np.percentile(values, [5, 50, 95]).tolist(), strict=True))
            for name, values in found.scores.items()
        },
    }
