"""``leyden compare``: several runs on one page, their curves over each other and their recipes side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leyden.checkpoint.origin import read_recipe
from leyden.core.page import Plot, write_page
from leyden.evaluate.plots import COLOURS, Curve, line_plot
from leyden.evaluate.report import smooth
from leyden.evaluate.runs import recipe_differences, summarise
from leyden.train import read_metrics


def write_comparison(directories: Sequence[Path], path: Path) -> None:
    """Write a page of the runs in ``directories`` to ``path``."""
    names = short_names(directories)
    metrics = [read_metrics(directory / "metrics.jsonl") for directory in directories]
    summaries = [summarise(directory) for directory in directories]
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(directories))]
    facts = {
        "title": " | ".join(names),
        "sections": ["Runs", "Curves", "Recipes"],
        "runs": list(zip(names, colours, summaries, strict=True)),
        "curves": _plots(names, colours, metrics),
        "names": names,
        "differences": recipe_differences([read_recipe(directory) for directory in directories]),
    }
    write_page(path, Path(__file__).with_name("compare.html"), facts)


def short_names(directories: Sequence[Path]) -> list[str]:
    """The last part of each path, and as many before it as tell them apart."""
    parts = [directory.resolve().parts for directory in directories]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(directory) for directory in directories]


def _plots(names: Sequence[str], colours: Sequence[str], metrics: Sequence[list[dict[str, Any]]]) -> list[Plot]:
    plots = []
    for key, title, label, smoothed in (
        ("loss", "Training loss, smoothed", "nats per token", True),
        ("held_out_loss", "Loss on held-out documents", "nats per token", False),
        ("lr", "Learning rate", "learning rate", False),
        ("grad_norm", "Gradient norm, smoothed", "norm before clipping", True),
        ("tokens_per_second", "Throughput, smoothed", "tokens per second", True),
    ):
        curves = []
        for name, colour, lines in zip(names, colours, metrics, strict=True):
            known = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            if known:
                values: list[float | None] = [value for _, value in known]
                values = smooth(values) if smoothed else values
                curves.append(Curve(values, name, colour, steps=[step for step, _ in known]))
        if curves:
            wide = key in ("loss", "held_out_loss")
            plots.append(Plot(title, line_plot(key, [], curves, label, wide=wide), wide=wide))
    return plots
