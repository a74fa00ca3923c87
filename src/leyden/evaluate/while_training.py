"""What the report of a run shows of what was measured while the model was trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from leyden.core.page import ACCENT, MUTED, SECOND, Plot
from leyden.evaluate.plots import COLOURS, Curve, line_plot
from leyden.evaluate.score_plots import cell_map, short_number

Line = Mapping[str, Any]
"""A line of ``metrics.jsonl``, ``eval.jsonl`` or ``spikes.jsonl``."""

_LISTED_DOCUMENTS = 5
_DIVISIONS = (("sources", "source"), ("lengths", "length in tokens"))


def validation_figures(results: Sequence[Line], marks: Sequence[tuple[int, str]]) -> list[Plot]:
    """The held-out documents by source and by length, and the tasks, over steps.

    Args:
        results: of ``eval.jsonl``.
        marks: where stages begin, as :func:`leyden.evaluate.plots.line_plot` takes them.
    """
    lines = [line for line in results if "stage" in line]
    figures = []
    for division, what in _DIVISIONS:
        curves = _divided([line for line in lines if line["task"] == "held_out"], division)
        if curves:
            svg = line_plot(f"held-out-{division}", [], curves, "bits per byte", marks=marks, wide=True)
            caption = "Documents that no step trains on. Less is better."
            figures.append(Plot(f"Held-out documents by {what}", svg, caption, wide=True))
    tasks: dict[str, list[Line]] = {}
    for line in lines:
        if line["task"] != "held_out":
            tasks.setdefault(line["task"], []).append(line)
    for number, (title, own) in enumerate(tasks.items()):
        grid = own[-1].get("cells", ())
        if len(own) == 1 and grid and {"length", "depth"} <= grid[0].keys():  # where it was measured at the end alone
            svg, caption = cell_map(f"task-{number}", ("depth", "length"), grid), f"The share found, of {own[-1]['n']}."
        else:
            svg = line_plot(f"task-{number}", [], _task_curves(own), "value", marks=marks)
            caption = f"Of {own[-1]['n']} items each time."
        figures.append(Plot(title, svg, caption))
    return figures


def noise_figure(metrics: Sequence[Line], marks: Sequence[tuple[int, str]]) -> list[Plot]:
    """The noise scale of the gradient beside the batch; nothing where it was not measured."""
    lines = [line for line in metrics if "noise_scale" in line]
    if not lines:
        return []
    steps = [line["step"] for line in lines]
    curves = [Curve([line["noise_scale"] for line in lines], "noise scale", ACCENT, 1.8)]
    critical = [line.get("critical_batch") for line in lines]
    if any(critical):
        curves.append(Curve(critical, "power law of the loss", MUTED, 1.2))
    batch = [line.get("labels") for line in lines]
    if any(batch):
        curves.append(Curve(batch, "batch", SECOND, 1.2))
    caption = (
        "Above the batch, a larger batch would save steps; far below it, the batch wastes tokens (arXiv 1812.06162). "
        "A running average; it has gaps where the noise hides the gradient."
    )
    return [Plot("Gradient noise scale", line_plot("noise", steps, curves, "labels", marks=marks), caption)]


def spike_curve(spikes: Sequence[Line]) -> list[Curve]:
    """The spikes as points of the plot of the loss; nothing where there were none."""
    if not spikes:
        return []
    return [
        Curve([line["loss"] for line in spikes], "spikes", "#b3471f", steps=[s["step"] for s in spikes], points=True)
    ]


def spike_rows(spikes: Sequence[Line]) -> list[tuple[str, ...]]:
    """Step, loss, gradient norm, repeated n-grams, what was done, and documents of each spike."""
    return [
        (
            str(line["step"]),
            f"{line['loss']:.3f} (limit {line['loss_limit']:.3f})",
            f"{line['grad_norm']:.3g} (limit {line['grad_norm_limit']:.3g})",
            _repeats(line),
            f"{line['action']} to step {line['to_step']}" if "to_step" in line else str(line["action"]),
            _documents(line.get("documents", [])),
        )
        for line in spikes
    ]


def _divided(lines: Sequence[Line], division: str) -> list[Curve]:
    """A curve for each part."""
    lines = [line for line in lines if division in line]
    names = dict.fromkeys(name for line in lines for name in line[division])
    curves = []
    for number, name in enumerate(names):
        known = [(line["step"], line[division][name]["bits_per_byte"]) for line in lines if name in line[division]]
        values = [value for _, value in known]
        curves.append(Curve(values, name, COLOURS[number % len(COLOURS)], 1.6, steps=[step for step, _ in known]))
    return curves


def _task_curves(lines: Sequence[Line]) -> list[Curve]:
    """The figure over steps; of a task with cells of several lengths, a curve for each length."""
    steps = [line["step"] for line in lines]
    lengths = sorted({cell["length"] for line in lines for cell in line.get("cells", []) if "length" in cell})
    if len(lengths) < 2:
        return [Curve([line["value"] for line in lines], "", ACCENT, 1.8, steps=steps)]
    curves = []
    for number, length in enumerate(lengths):
        values = [_mean([c["value"] for c in line.get("cells", []) if c.get("length") == length]) for line in lines]
        curves.append(Curve(values, short_number(length), COLOURS[number % len(COLOURS)], 1.6, steps=steps))
    return curves


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _repeats(line: Line) -> str:
    share = line.get("repeated_share")
    return "" if share is None else f"{share:.1%} of the tokens (usually {line['usual_repeated_share']:.1%})"


def _documents(documents: Sequence[Line]) -> str:
    """The first of them, and how many there are."""
    names = dict.fromkeys(f"{one['source']} {one['id']}".strip() for one in documents)
    listed = ", ".join(list(names)[:_LISTED_DOCUMENTS])
    more = len(names) - _LISTED_DOCUMENTS
    return f"{listed} and {more:,} more" if more > 0 else listed
