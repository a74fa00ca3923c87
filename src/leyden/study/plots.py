"""Plots of a study, as SVG files that stand alone."""

from pathlib import Path
from typing import Any

from leyden.core.files import atomic_file
from leyden.study.hypothesis import TestResult
from leyden.study.null import NullResult
from leyden.study.plan import StudyPlan
from leyden.study.verdict import Verdict

_ACCENT, _MUTED = "#2f6db3", "#8a8f98"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "leyden",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_verdict(plan: StudyPlan, verdict: Verdict, path: Path) -> None:
    """The effect by each test and on each benchmark, with its two-sided interval, beside what could be detected."""
    found = verdict.findings[plan.reading]
    rows = [(f"{name} test" + " (decides)" * (name == plan.test), test) for name, test in found.tests.items()]
    if len(found.by_benchmark) > 1:
        rows += [(name, test) for name, test in found.by_benchmark.items()]
    figure, axes = _canvas(7.0, 1.2 + 0.35 * len(rows))
    for place, (name, test) in enumerate(reversed(rows)):
        half = test.effect - test.lower
        color = _ACCENT if "decides" in name else _MUTED
        axes.errorbar(test.effect, place, xerr=half, fmt="o", color=color, capsize=3)
        axes.annotate(_figures(test), (test.effect, place), xytext=(0, 6), textcoords="offset points", ha="center")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(plan.minimum_detectable_effect, color=_MUTED, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    axes.margins(y=0.2)
    axes.set_xlabel(
        f"treatment - baseline, log acc_norm² ({plan.reading})\n"
        f"bars: {1 - 2 * plan.alpha:.0%} interval; dashed: minimum detectable effect"
    )
    axes.set_title("accepted" if verdict.accepted else "not accepted", loc="left")
    _save(figure, path)


def draw_null(result: NullResult, path: Path) -> None:
    """The false-positive rate of each test, real and simulated, with two standard errors."""
    figure, axes = _canvas(6.0, 3.0)
    names = list(result.real)
    for offset, label, rates, color in (
        (-0.12, f"real: splits of {result.num_runs} runs", result.real, _ACCENT),
        (0.12, "simulated", result.simulated, _MUTED),
    ):
        shown = [(place, rates[name]) for place, name in enumerate(names) if name in rates]
        axes.errorbar(
            [place + offset for place, _ in shown],
            [rate.value for _, rate in shown],
            yerr=[2 * (rate.standard_error or 0) for _, rate in shown],
            fmt="o",
            color=color,
            capsize=3,
            label=label,
        )
    axes.axhline(result.alpha, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("false-positive rate")
    axes.legend(frameon=False)
    _save(figure, path)


def _figures(test: TestResult) -> str:
    return f"{test.effect:+.3g}, p = {test.p:.2g}"


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), atomic_file(path) as part:
        figure.savefig(part, format="svg", metadata={"Date": None})
