"""The page of what ``leyden eval`` found: the scores of one folder, or of several beside each other."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leyden.core.errors import UserError
from leyden.core.page import Plot, write_page
from leyden.evaluate.compare import short_names
from leyden.evaluate.plots import COLOURS
from leyden.evaluate.score_plots import cell_map, order_of, score_curves, short_number

RESULTS = "results.jsonl"
"""The lines of a folder, one a task."""
_FIGURES = ("value", "stderr", "interval", "n", "perplexity", "bits_per_byte")
"""What a cell has beside the facts that it is of."""

Line = dict[str, Any]


def read_results(directory: Path) -> list[Line]:
    """The lines of a folder; none where it has none.

    Raises:
        UserError: a line that is not as ``leyden eval`` writes it.
    """
    path = directory / RESULTS
    if not path.is_file():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            float(line["value"])
            str(line["task"])
        except (ValueError, TypeError, LookupError):
            raise UserError(f"{path}, row {number}: it is no line of `leyden eval`; remove the file.") from None
        lines.append(line)
    return lines


def write_scores_page(directories: Sequence[Path], path: Path) -> None:
    """Write a page of the scores in ``directories`` to ``path``.

    Raises:
        UserError: a folder has no scores, or ``path`` is no page of Leyden's.
    """
    results = [read_results(directory) for directory in directories]
    for directory, lines in zip(directories, results, strict=True):
        if not lines:
            raise UserError(f"{directory} has no {RESULTS}; name folders that were given to `leyden eval --out`.")
    names = short_names(directories) if len(directories) > 1 else [results[0][0].get("model", "")]
    tasks = list(dict.fromkeys(line["task"] for lines in results for line in lines))
    of_task = {
        task: [next((line for line in lines if line["task"] == task), None) for lines in results] for task in tasks
    }
    facts = {
        "title": " | ".join(names),
        "sections": ["Scores", "Pictures", "Tables", "Settings"],
        "names": list(zip(names, _colours(len(names)), strict=True)),
        "scores": [(task, [_shown(line) for line in lines]) for task, lines in of_task.items()],
        "pictures": [plot for task, lines in of_task.items() for plot in _pictures(task, names, lines)],
        "tables": [(task, *_table(lines)) for task, lines in of_task.items() if any(map(_cells, lines))],
        "settings": [
            (f"{task} of {name}" if len(names) > 1 else task, _settings(line))
            for task, lines in of_task.items()
            for name, line in zip(names, lines, strict=True)
            if line is not None
        ],
    }
    write_page(path, Path(__file__).with_name("scores.html"), facts)


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _cells(line: Line | None) -> list[Line]:
    return [] if line is None else line.get("cells", [])


def _axes(cells: Sequence[Line]) -> list[str]:
    return [key for key in cells[0] if key not in _FIGURES]


def _shown(figures: Mapping[str, Any] | None) -> str:
    """A value, its interval and how many items it is of."""
    if figures is None:
        return ""
    interval = figures.get("interval")
    between = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    count = f", n = {figures['n']:,}" if "n" in figures else ""
    return f"{figures['value']:.3f}{between}{count}"


def _settings(line: Line) -> str:
    parts = {**line.get("settings", {}), "seconds": line.get("seconds")}
    reading = line.get("reading") or {}
    if reading.get("factor"):
        parts["tokens of prompts per token read"] = reading["factor"]
    return ", ".join(f"{name}: {value}" for name, value in parts.items() if value is not None)


def _pictures(task: str, names: Sequence[str], lines: Sequence[Line | None]) -> list[Plot]:
    """The curves that a task asks for with ``plot``; else a heat map of each model where cells are of two facts, and a
    curve of all where they are of one number."""
    known = [(index, cells) for index, line in enumerate(lines) if (cells := _cells(line))]
    if not known:
        return []
    axes = _axes(known[0][1])
    asked = next((line["plot"] for line in lines if line and "plot" in line), None)
    if asked is not None:
        return [_curves(task, names, known, asked["x"], asked["y"])]
    if len(axes) == 2:
        maps = []
        for index, cells in known:
            title = task if len(names) == 1 else f"{task}: {names[index]}"
            maps.append(Plot(title, cell_map(f"heat-{task}-{index}", axes, cells)))
        return maps
    if len(axes) != 1 or not all(isinstance(cell[axes[0]], int | float) for _, cells in known for cell in cells):
        return []
    return [_curves(task, names, known, axes[0], "value")]


def _curves(task: str, names: Sequence[str], known: Sequence[tuple[int, Sequence[Line]]], x: str, y: str) -> Plot:
    """Values over the fact ``x``: a curve for each model and each combination of the other facts."""
    cells_of: dict[str, list[Line]] = {}
    varied = [axis for axis in _axes(known[0][1]) if axis != x and len({cell[axis] for cell in known[0][1]}) > 1]
    for index, cells in known:
        for cell in cells:
            parts = [names[index]] * (len(names) > 1) + [f"{axis} {short_number(cell[axis])}" for axis in varied]
            cells_of.setdefault(", ".join(parts), []).append(cell)
    curves = []
    for (label, cells), colour in zip(cells_of.items(), _colours(len(cells_of)), strict=True):
        unknown = [np.nan, np.nan]
        intervals = np.array([cell.get("interval") or unknown for cell in cells], np.float64)
        curves.append((label, colour, [cell[x] for cell in cells], [cell["value"] for cell in cells], intervals))
    return Plot(f"{task} by {x}", score_curves(f"curve-{task}", x, y, curves))


def _table(lines: Sequence[Line | None]) -> tuple[list[str], list[tuple[list[str], list[str]]]]:
    """The facts that cells are of, and a row for each cell with the figures of every model."""
    each = [_cells(line) for line in lines]
    axes = _axes(next(cells for cells in each if cells))
    of_model = [{tuple(cell.get(axis) for axis in axes): cell for cell in cells} for cells in each]
    keys = sorted({key for cells in of_model for key in cells}, key=lambda key: [order_of(part) for part in key])
    shown = [[_shown(cells.get(key)) for cells in of_model] for key in keys]
    return axes, [([short_number(part) for part in key], values) for key, values in zip(keys, shown, strict=True)]
