"""The report of a study on a grid: one HTML page, the same tables as Markdown, and all figures as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from leyden.core.environment import machine
from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.page import write_page
from leyden.core.quantities import count_text
from leyden.study.grid import Point
from leyden.study.kinds import Kind, Measured, Table
from leyden.study.outcome import Result, code_of


def write_study(kind: Kind, points: Sequence[Point], results: Mapping[str, Result], directory: Path) -> str:
    """Read the results and write ``report.html``, ``tables.md`` and ``results.json`` to the study's folder.

    Args:
        kind: of the study.
        points: of the grid.
        results: of each, by key.
        directory: the study's.

    Returns:
        The tables and remarks, as Markdown.

    Raises:
        UserError: no run is done, or there are too few to fit.
    """
    told: list[Measured] = [(point, results[point.key]) for point in points]
    done = [(point, result) for point, result in told if result.status == "done"]
    if not done:
        raise UserError(
            f"no run of this study is done, so that there is nothing to report. The first says: {told[0][1].reason}. "
            "Change the grid, or run again what failed: --retry."
        )
    findings = kind.read(done)
    remarks = [*_not_done(told), *_without_baseline(kind, told, done), *_of_other_code(done), *findings.remarks]
    tables = [*findings.tables, _runs_table(told)]
    text = "\n\n".join([*(_markdown(table) for table in tables), *remarks])
    record = {
        "study": kind.title,
        "figures": findings.figures,
        "remarks": remarks,
        "runs": [{"point": asdict(point), "result": asdict(result)} for point, result in told],
    }
    facts = {
        "title": kind.title,
        "sections": ["Findings", "Runs"],
        "tables": findings.tables,
        "plots": findings.plots,
        "remarks": remarks,
        "runs": told,
    }
    write_page(directory / "report.html", Path(__file__).with_name("grid.html"), facts)
    _write(directory / "tables.md", f"{text}\n")
    _write(directory / "results.json", json.dumps(record, indent=1) + "\n")
    return text


def _not_done(told: Sequence[Measured]) -> list[str]:
    return [
        f"{point.name} {result.status} and is left out of every table and fit: {result.reason}."
        for point, result in told
        if result.status != "done"
    ]


def _without_baseline(kind: Kind, told: Sequence[Measured], done: Sequence[Measured]) -> list[str]:
    first = told[0][0]
    if not kind.has_baseline or any(point.coordinates == first.coordinates for point, _ in done):
        return []
    return [
        f"No run of the grid's first point ({first.name.rpartition(', ')[0]}) is done, so that differences are from "
        "the next point that has one; run the first again (--retry) for those that the grid asks for."
    ]


def _of_other_code(done: Sequence[Measured]) -> list[str]:
    """What is said of results that another version of the code made."""
    now, found = code_of(machine()), {}
    for point, result in done:
        found.setdefault(result.code, []).append(point.name)
    others = {code: names for code, names in found.items() if code != now}
    return [
        f"{len(names)} of {len(done)} runs were made by version {code}, and this is {now}: {'; '.join(names[:3])}"
        f"{' and others' * (len(names) > 3)}. To have them made anew, remove their folders below points/."
        for code, names in others.items()
    ]


def _runs_table(told: Sequence[Measured]) -> Table:
    rows = []
    for point, result in told:
        loss = "" if result.loss is None else f"{result.loss:.4f}"
        steps = result.training_seconds
        overhead = "" if steps is None else f"{result.seconds - steps:.1f}"
        rows.append(
            (
                point.name,
                result.status,
                loss,
                count_text(point.parameters),
                count_text(result.tokens),
                f"{result.seconds:.1f}",
                overhead,
                str(result.starts),
                point.key,
            )
        )
    header = ("point", "status", "loss", "parameters", "tokens", "seconds", "of these not steps", "starts", "key")
    return Table("Runs", header, tuple(rows))


def _markdown(table: Table) -> str:
    lines = [f"**{table.title}**", "", f"| {' | '.join(table.header)} |", "|---" * len(table.header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in table.rows)])


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")
