"""``report/index.html``: what a run did, as one file that needs nothing else.

It is made from the files of the run directory alone, so that it can be made again at any time; a file that is not there
leaves a section that says so.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leyden.core.page import ACCENT, MUTED, SECOND, Plot, write_page
from leyden.evaluate.plots import Curve, line_plot, load_at_end, load_over_time
from leyden.evaluate.runs import end_of
from leyden.evaluate.while_training import noise_figure, spike_curve, spike_rows, validation_figures
from leyden.train import read_metrics

_BASELINES = {
    "unigram_tokens": "Unigram model over tokens",
    "xz_4096": "xz 9e, 4 KB at a time",
    "xz_documents": "xz 9e, whole documents",
}
PROGRESS = "progress.html"
"""The report of a run that is not finished."""

_SMOOTHING_STEPS = 8
"""On either side."""


@dataclass(frozen=True)
class HeadlineBar:
    """One bar of the headline.

    Attributes:
        label: what it measures.
        value: bits per byte.
        percent: its length.
        ours: whether it is the model.
    """

    label: str
    value: float
    percent: float
    ours: bool


def write_report(run_dir: Path, name: str = "index.html") -> Path:
    """Write ``run_dir/report/NAME`` and return its path.

    It reads ``metrics.jsonl``, ``eval.jsonl``, ``spikes.jsonl``, ``samples.jsonl``, ``recipe.toml``, ``data.json`` and
    ``environment.json``, as far as they are there.
    """
    metrics = read_metrics(run_dir / "metrics.jsonl")
    results = read_metrics(run_dir / "eval.jsonl")
    spikes = read_metrics(run_dir / "spikes.jsonl")
    validation = validation_figures(results, _stage_marks(metrics))
    recipe = _text(run_dir / "recipe.toml")
    page = {
        "title": _title(run_dir, recipe),
        "sections": [
            "Result",
            "Training",
            *(["Validation"] if validation else []),
            *(["Spikes"] if spikes else []),
            "Experts",
            "Speed",
            "Samples",
            "Data",
            "Recipe",
            "Machine",
        ],
        "bars": _bars(results),
        "numbers": _numbers(metrics, results),
        "training": _training_figures(metrics, spikes),
        "validation": validation,
        "spikes": spike_rows(spikes),
        "experts": _expert_figures(metrics),
        "speed": _speed_figures(metrics),
        "samples": read_metrics(run_dir / "samples.jsonl"),
        "data": _facts(_json(run_dir / "data.json")),
        "recipe": recipe,
        "machine": _facts(_json(run_dir / "environment.json")),
    }
    path = run_dir / "report" / name
    write_page(path, Path(__file__).with_name("report.html"), page)
    if name != PROGRESS:
        (path.parent / PROGRESS).unlink(missing_ok=True)  # it says less, and would be found beside the whole one
    return path


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _json(path: Path) -> Mapping[str, Any]:
    """The object in ``path``; empty where there is none, and where a crash left it half written."""
    try:
        data = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {"": data}


def _title(run_dir: Path, recipe: str | None) -> str:
    """The recipe's name where it has one, else the directory's."""
    try:
        name = tomllib.loads(recipe or "").get("name")
    except tomllib.TOMLDecodeError:
        name = None
    return str(name or run_dir.resolve().name)


def _bits_per_byte(results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The last measurement of a finished model."""
    found = [line for line in results if line.get("task") == "bits_per_byte" and "stage" not in line]
    return found[-1] if found else None


def _bars(results: Sequence[Mapping[str, Any]]) -> list[HeadlineBar]:
    """The model among its baselines, the worst first."""
    measured = _bits_per_byte(results)
    if measured is None:
        return []
    baselines: Mapping[str, float] = measured.get("baselines", {})
    entries = [(_BASELINES.get(name) or name, float(value), False) for name, value in baselines.items()]
    entries.append(("This model", float(measured["value"]), True))
    longest = max(value for _, value, _ in entries)
    entries.sort(key=lambda entry: -entry[1])
    return [HeadlineBar(label, value, round(100 * value / longest, 2), ours) for label, value, ours in entries]


def _numbers(metrics: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(figure, unit, what it is) for the top of the page."""
    numbers = []
    measured = _bits_per_byte(results)
    if measured is not None:
        numbers.append((f"{measured['value']:.3f}", "bits/byte", "on held-out documents"))
    unseen = [line for line in metrics if line.get("held_out_loss") is not None]
    if measured is None and unseen:
        bits, loss = unseen[-1].get("held_out_bits_per_byte"), unseen[-1]["held_out_loss"]
        figure = (f"{bits:.3f}", "bits/byte") if bits is not None else (f"{loss:.3f}", "nats")
        numbers.append((*figure, "on held-out documents so far"))
    if metrics:
        end = end_of(metrics)
        losses = [line["loss"] for line in end if line.get("loss") is not None]
        rates = [line["tokens_per_second"] for line in metrics if line.get("tokens_per_second")]
        if losses:
            numbers.append((f"{np.mean(losses):.3f}", "nats/token", f"training loss, last {len(end)} steps"))
        numbers.append((_compact(metrics[-1]["tokens"]), "tokens", f"in {_grouped(metrics[-1]['step'])} steps"))
        if rates:
            numbers.append((_grouped(float(np.median(rates))), "tokens/s", "median over training steps"))
        used = [line["mfu"] for line in metrics if line.get("mfu")]
        if used:
            numbers.append((f"{100 * np.median(used):.1f} %", "", "of the measured matmul peak (model FLOPs)"))
    return numbers


def _training_figures(metrics: Sequence[Mapping[str, Any]], spikes: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Loss, learning rate, gradient norm and noise scale."""
    if not metrics:
        return []
    loss = _column(metrics, "loss")
    curves = [Curve(loss, "each step", MUTED, 0.8, 0.55), Curve(smooth(loss), "smoothed", ACCENT, 1.8)]
    smoothing = f"Smoothed: mean over {2 * _SMOOTHING_STEPS + 1} steps around each."
    measured = [(line["step"], line["held_out_loss"]) for line in metrics if line.get("held_out_loss") is not None]
    if measured:
        curves.append(Curve([loss for _, loss in measured], "held out", SECOND, 1.8, steps=[s for s, _ in measured]))
        smoothing += " Held out: on documents that no step trains on."
    curves += spike_curve(spikes)
    figures = [_figure(metrics, "loss", "Loss", curves, "nats per token", caption=smoothing, wide=True)]
    for key, title, label in (
        ("lr", "Learning rate", "learning rate"),
        ("grad_norm", "Gradient norm", "norm before clipping"),
    ):
        values = _column(metrics, key)
        if any(value is not None for value in values):
            figures.append(_figure(metrics, key, title, [Curve(values)], label))
    return figures + noise_figure(metrics, _stage_marks(metrics))


def _expert_figures(metrics: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Load over time and at the end, and what capacity dropped."""
    lines = [line for line in metrics if line.get("expert_load")]
    if not lines:
        return []
    load = np.array([line["expert_load"] for line in lines], dtype=float)
    end = load[-len(end_of(lines)) :].mean(0)
    figures = [
        Plot(
            "Load of every expert",
            load_over_time("load", [line["step"] for line in lines], load),
            "Share of a layer's assignments, relative to an even split.",
            wide=True,
        ),
        Plot(
            "Load at the end",
            load_at_end("load-end", end),
            f"Mean of the last {len(end_of(lines))} steps; 1 is an even split. "
            + ("" if any(_column(metrics, "dropped")) else "No token was dropped in the whole run."),
        ),
    ]
    figures.append(_figure(metrics, "aux", "Auxiliary loss", [Curve(_column(metrics, "aux_loss"))], "nats per token"))
    dropped = [None if value is None else 100 * value for value in _column(metrics, "dropped")]
    if any(dropped):
        figures.append(_figure(metrics, "dropped", "Dropped assignments", [Curve(dropped)], "percent"))
    return figures


def _speed_figures(metrics: Sequence[Mapping[str, Any]]) -> list[Plot]:
    figures = []
    for key, title, label, scale in (
        ("tokens_per_second", "Throughput", "tokens per second", 1),
        ("mfu", "Model-FLOPs utilisation", "percent of the matmul peak", 100),
    ):
        values = [None if value is None else scale * value for value in _column(metrics, key)]
        if any(values):
            figures.append(_figure(metrics, key, title, [Curve(values, color=SECOND)], label, from_zero=True))
    return figures


def _figure(
    metrics: Sequence[Mapping[str, Any]],
    name: str,
    title: str,
    curves: Sequence[Curve],
    label: str,
    *,
    caption: str = "",
    wide: bool = False,
    from_zero: bool = False,
) -> Plot:
    """Curves over the steps of ``metrics``, with the beginnings of its stages where there are several."""
    steps = [line["step"] for line in metrics]
    svg = line_plot(name, steps, curves, label, marks=_stage_marks(metrics), wide=wide, from_zero=from_zero)
    return Plot(title, svg, caption, wide)


def _stage_marks(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Where stages begin, if there are several."""
    starts: dict[str, int] = {}
    for line in metrics:
        starts.setdefault(str(line.get("stage", "")), line["step"])
    return [(step, stage) for stage, step in starts.items()] if len(starts) > 1 else []


def _column(metrics: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    return [line.get(key) for line in metrics]


def smooth(values: Sequence[float | None]) -> list[float | None]:
    """The mean of the values around each; near the ends the window shrinks evenly, so that nothing is shifted."""
    smoothed: list[float | None] = []
    for index in range(len(values)):
        reach = min(_SMOOTHING_STEPS, index, len(values) - 1 - index)
        around = [value for value in values[index - reach : index + reach + 1] if value is not None]
        smoothed.append(sum(around) / len(around) if around else None)
    return smoothed


def _facts(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as (name, text), in order."""
    facts = []
    for key, value in data.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            facts += _facts(value, f"{name}: ")
        elif isinstance(value, list):
            facts.append((name, ", ".join(map(_said, value)) or "none"))
        else:
            facts.append((name, _said(value)))
    return facts


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _grouped(value) if isinstance(value, int | float) else str(value)


def _grouped(value: float) -> str:
    """Thousands apart by thin spaces; four significant digits below a thousand."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u2009")
    return f"{value:.4g}"


def _compact(value: float) -> str:
    """Three digits with a unit from a million on."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.3g}\u2009{unit}"
    return _grouped(value)
