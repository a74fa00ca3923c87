"""Plots of scores: heat maps over two facts of the items, curves over one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leyden.core.page import HALF, LINE, MUTED, WIDE, color_map, drawing

_SCORE = ("#b3471f", "#e8a15c", "#e7d98a", "#8bbf6a", "#2f7d43")
"""From 0 to 1; its numbers are legible in white and in black."""
_MAX_ANNOTATED_CELLS = 160
_STEPS_OF_LENGTH = 1024


def short_number(value: object) -> str:
    """``1048576`` as ``1M``, ``2048`` as ``2k``; any other value as it is."""
    if isinstance(value, int) and value >= _STEPS_OF_LENGTH:
        for size, unit in ((_STEPS_OF_LENGTH**2, "M"), (_STEPS_OF_LENGTH, "k")):
            if value >= size and value % size == 0:
                return f"{value // size}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def heat_map(
    name: str, rows: tuple[str, Sequence[object]], columns: tuple[str, Sequence[object]], values: np.ndarray
) -> str:
    """Scores between 0 and 1 as coloured cells, in SVG.

    Args:
        name: of the plot, unlike any other's on the page.
        rows, columns: what they are, and the fact of each.
        values: [rows, columns]; NaN where there is no score.
    """
    with drawing(name, WIDE if len(columns[1]) > 12 else HALF, min(6.0, 0.9 + 0.3 * len(rows[1]))) as drawn:
        axes = drawn.axes
        axes.pcolormesh(
            np.ma.masked_invalid(values), cmap=color_map(_SCORE), vmin=0, vmax=1, edgecolors=LINE, linewidth=0.4
        )
        axes.invert_yaxis()
        axes.grid(visible=False)
        if values.size <= _MAX_ANNOTATED_CELLS:
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    color = "#ffffff" if value < 0.2 or value > 0.85 else "#15181c"
                    at = (column + 0.5, row + 0.5)
                    axes.text(*at, f"{value:.2f}", ha="center", va="center", color=color, size=8)
        axes.set_xticks(np.arange(len(columns[1])) + 0.5, [short_number(value) for value in columns[1]])
        axes.set_yticks(np.arange(len(rows[1])) + 0.5, [short_number(value) for value in rows[1]])
        axes.set_xlabel(columns[0])
        axes.set_ylabel(rows[0])
    return drawn.svg


def cell_map(name: str, axes: Sequence[str], cells: Sequence[Mapping[str, Any]]) -> str:
    """The cells of a task's result as a heat map, in SVG.

    Args:
        name: of the plot, unlike any other's on the page.
        axes: the two facts of each cell, that of the rows first.
        cells: each with both facts and its ``value``.
    """
    rows, columns = (list(dict.fromkeys(sorted((cell[axis] for cell in cells), key=order_of))) for axis in axes)
    values = np.full((len(rows), len(columns)), np.nan)
    for cell in cells:
        values[rows.index(cell[axes[0]]), columns.index(cell[axes[1]])] = cell["value"]
    return heat_map(name, (axes[0], rows), (axes[1], columns), values)


def order_of(fact: Any) -> tuple[bool, Any]:
    """What facts are sorted by: numbers before texts."""
    return isinstance(fact, str), fact


def score_curves(
    name: str,
    x_label: str,
    y_label: str,
    curves: Sequence[tuple[str, str, Sequence[float], Sequence[float], np.ndarray]],
) -> str:
    """Curves with their intervals over one fact on a logarithmic axis, in SVG.

    Args:
        name: of the plot, unlike any other's on the page.
        x_label, y_label: the fact, and what the values are.
        curves: of each its label, its colour, the facts, the values, and the intervals [N, 2] (NaN where unknown).
    """
    with drawing(name, HALF, 2.6) as drawn:
        axes = drawn.axes
        ticks = sorted({place for _, _, places, _, _ in curves for place in places})
        for label, color, places, values, intervals in curves:
            axes.fill_between(places, intervals[:, 0], intervals[:, 1], color=color, alpha=0.15, linewidth=0)
            axes.plot(places, values, color=color, label=label, marker="o", markersize=3, linewidth=1.4)
        if ticks[0] > 0 and ticks[-1] > 4 * ticks[0]:
            axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [short_number(tick) for tick in ticks], rotation=45 if len(ticks) > 8 else 0)
        axes.minorticks_off()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label, color=MUTED)
        if len(curves) > 1:
            axes.legend(loc="best")
    return drawn.svg
