"""The plots of a run's report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leyden.core.page import ACCENT, HALF, INK, LINE, MUTED, WIDE, color_map, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

# Deep blue for an idle expert, pale at an even load, orange for a busy one; legible on white and on black.
_LOAD = ("#1b3a6b", "#5b8cc0", "#d9dde0", "#e8a15c", "#b3471f")
COLOURS = ("#2b7bba", "#d1603d", "#3c8d53", "#8457a6", "#b08d1e", "#2a9d98", "#b8437f", "#6b7280")
"""Of several curves, in order; they are legible on white and on black."""
_MAX_COLUMNS = 160
_MAX_ANNOTATED_CELLS = 160


@dataclass(frozen=True)
class Curve:
    """One line of a plot; a None value leaves a gap.

    Attributes:
        values: over ``steps``, or over the plot's where that is None.
        label, color, width, opacity: how it is drawn.
        steps: its own, if they are not the plot's.
        points: whether it is points, with no line between them.
    """

    values: Sequence[float | None]
    label: str = ""
    color: str = ACCENT
    width: float = 1.4
    opacity: float = 1.0
    steps: Sequence[int] | None = None
    points: bool = False


def line_plot(
    name: str,
    steps: Sequence[int],
    curves: Sequence[Curve],
    y_label: str,
    *,
    marks: Sequence[tuple[int, str]] = (),
    wide: bool = False,
    from_zero: bool = False,
) -> str:
    """Curves over optimizer steps, as SVG.

    Args:
        name: of the plot, unlike any other's on the page.
        steps: [N] of the values of every curve that has no steps of its own.
        curves: drawn in order.
        y_label: what the values are.
        marks: (step, name) of vertical lines: where stages begin.
        wide: for the page's whole width instead of half of it.
        from_zero: let the axis of the values begin at zero.
    """
    with drawing(name, WIDE if wide else HALF, 3.0 if wide else 2.4) as drawn:
        axes = drawn.axes
        for curve in curves:
            values = [np.nan if value is None else value for value in curve.values]
            own = steps if curve.steps is None else curve.steps
            marker = "o" if len(own) == 1 or curve.points else None
            axes.plot(
                own,
                values,
                color=curve.color,
                linewidth=curve.width,
                alpha=curve.opacity,
                label=curve.label or None,
                marker=marker,
                markersize=4,
                linestyle="none" if curve.points else "-",
            )
        for step, stage in marks:
            axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
            place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate(stage, (step, 1), xytext=(0, 3), color=MUTED, **place)
        axes.set_xlabel("step")
        axes.set_ylabel(y_label)
        axes.margins(x=0.01, y=0.08)
        if from_zero:
            axes.set_ylim(bottom=0)
        if any(curve.label for curve in curves):
            above = 1.08 if marks else 1  # of the stages' names
            axes.legend(loc="lower right", bbox_to_anchor=(1, above), ncols=len(curves), borderaxespad=0)
    return drawn.svg


def load_over_time(name: str, steps: Sequence[int], load: np.ndarray) -> str:
    """How evenly tokens went to experts, over a run: one band a layer, one row an expert, as SVG.

    Args:
        name: of the plot, unlike any other's on the page.
        steps: [N].
        load: [N, layers, E], shares of a layer's assignments; 1 / E is even.
    """
    _, num_layers, num_experts = load.shape
    bins = np.array_split(np.arange(len(steps)), min(len(steps), _MAX_COLUMNS))
    columns = np.stack([load[b].mean(0) for b in bins], axis=-1) * num_experts  # [layers, E, columns]
    with drawing(name, WIDE, min(7.0, 1.2 + 0.055 * num_layers * num_experts)) as drawn:
        axes = drawn.axes
        image = axes.imshow(
            columns.reshape(num_layers * num_experts, -1),
            aspect="auto",
            interpolation="nearest",
            cmap=color_map(_LOAD),
            vmin=0,
            vmax=2,
            extent=(steps[0], max(steps[-1], steps[0] + 1), num_layers * num_experts, 0),
        )
        for layer in range(1, num_layers):
            axes.axhline(layer * num_experts, color=INK, linewidth=0.8)
        axes.grid(visible=False)
        every = max(1, num_layers // 16)
        shown = range(0, num_layers, every)
        axes.set_yticks([(layer + 0.5) * num_experts for layer in shown], [str(layer + 1) for layer in shown])
        axes.set_xlabel("step")
        axes.set_ylabel("layer, one row an expert")
        _color_bar(drawn.figure, axes, image)
    return drawn.svg


def load_at_end(name: str, load: np.ndarray) -> str:
    """[layers, E] shares of a layer's assignments, as a grid of cells in SVG; 1.0 is even."""
    num_layers, num_experts = load.shape
    relative = load * num_experts
    with drawing(name, HALF, min(6.0, 0.9 + 0.25 * num_layers)) as drawn:
        axes = drawn.axes
        mesh = axes.pcolormesh(relative, cmap=color_map(_LOAD), vmin=0, vmax=2, edgecolors=LINE, linewidth=0.4)
        axes.invert_yaxis()
        axes.grid(visible=False)
        if load.size <= _MAX_ANNOTATED_CELLS:
            for (layer, expert), value in np.ndenumerate(relative):
                color = "#ffffff" if abs(value - 1) > 0.6 else "#15181c"
                axes.text(expert + 0.5, layer + 0.5, f"{value:.2f}", ha="center", va="center", color=color, size=8)
        axes.set_xticks(np.arange(num_experts) + 0.5, [str(e + 1) for e in range(num_experts)])
        axes.set_yticks(np.arange(num_layers) + 0.5, [str(layer + 1) for layer in range(num_layers)])
        axes.set_xlabel("expert")
        axes.set_ylabel("layer")
        _color_bar(drawn.figure, axes, mesh)
    return drawn.svg


def _color_bar(figure: "Figure", axes: "Axes", mappable: "ScalarMappable") -> None:
    bar = figure.colorbar(mappable, ax=axes, fraction=0.025, pad=0.015, ticks=[0, 1, 2])
    bar.ax.set_yticklabels(["idle", "even", "double"])
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
