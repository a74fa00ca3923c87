"""The kinds of studies, as one literal table: which grid each needs, and how its results become tables and plots."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from scipy import stats

from leyden.core.errors import UserError
from leyden.core.page import HALF, WIDE, Plot, drawing
from leyden.core.quantities import count_text
from leyden.evaluate.plots import COLOURS
from leyden.study.fits import LEAST_POINTS, LEAST_SIZES, IsoFlopFit, PowerLaw, fit_isoflops
from leyden.study.grid import Point
from leyden.study.outcome import Result
from leyden.study.scaling_laws import PFLOPS_DAY

Measured = tuple[Point, Result]


@dataclass(frozen=True)
class Table:
    """Text cells under a header."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass
class Findings:
    """What a study found.

    Attributes:
        tables, plots: in the order in which they are shown.
        remarks: sentences on what the data do not tell.
        figures: the same as numbers, for other programs.
    """

    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """One kind of study.

    Attributes:
        title: of its report.
        axes: that its grid must have, with what each is for. Any others divide the runs into groups.
        read: from the finished runs to what they say.
        least: different values that an axis needs.
        has_baseline: the other points are compared with the grid's first one.
    """

    title: str
    axes: Mapping[str, str]
    read: Callable[[Sequence[Measured]], Findings]
    least: Mapping[str, int] = field(default_factory=dict)
    has_baseline: bool = False

    def check(self, points: Sequence[Point]) -> None:
        """See before anything is run that the grid can answer.

        Raises:
            UserError: an axis is missing, or has too few values.
        """
        for axis, use in self.axes.items():
            if axis not in points[0].coordinates:
                raise UserError(
                    f"a study of {self.title.lower()} needs an axis named '{axis}': {use}. This grid has "
                    f"{', '.join(points[0].coordinates)}."
                )
            values = len({point.coordinates[axis] for point in points})
            if values < self.least.get(axis, 1):
                raise UserError(
                    f"the axis '{axis}' has {values} value{'s'[: values != 1]}, and a study of {self.title.lower()} "
                    f"needs at least {self.least[axis]}: with fewer nothing is left to tell how far a fit can be off."
                )


def read_scaling(measured: Sequence[Measured]) -> Findings:
    """IsoFLOP curves and Table 2's laws, for each group."""
    findings, rows = Findings(), []
    for group, runs in _groups(measured, ("size", "flops")).items():
        points = [point for point, _ in runs]
        budgets = [float(point.coordinates["flops"]) for point in points]
        losses = [_loss(result) for _, result in runs]
        try:
            fit = fit_isoflops(budgets, [p.active_parameters for p in points], [r.tokens for _, r in runs], losses)
        except UserError as error:
            findings.remarks.append(f"{group}: {error}")
            fit = None
        findings.plots.append(_isoflop_plot(group, budgets, runs, fit))
        if fit is None:
            continue
        findings.remarks += [f"{group}: the budget of {one}" for one in fit.left_out]
        findings.remarks += [f"{group}: {fit.untold}"] * bool(fit.untold)
        rows.append((group, *(_law_text(law) for law in (fit.loss, fit.parameters, fit.tokens))))
        findings.figures[group] = {
            name: {"scale": law.scale, "exponent": law.exponent, "interval": law.interval}
            for name, law in (("loss", fit.loss), ("parameters", fit.parameters), ("tokens", fit.tokens))
        }
    header = ("group", "loss L(C)", "parameters N(C)", "tokens D(C)")
    findings.tables.append(
        Table("Power laws of the budget C in PFLOP/s-days, 95 % intervals of the exponents", header, tuple(rows))
    )
    findings.remarks.append(
        "N counts the parameters that a token meets, without embeddings and output projection. The laws hold within "
        "the budgets of this grid; how far beyond, its runs cannot say."
    )
    return findings


def read_ablation(measured: Sequence[Measured]) -> Findings:
    """The loss of every point by seed, and its difference from the first point's."""
    by_point = _groups(measured, ())
    names = list(by_point)
    first = {point.seed: _loss(result) for point, result in by_point[names[0]]}
    findings, rows = Findings(), []
    for name, runs in by_point.items():
        losses = {point.seed: _loss(result) for point, result in runs}
        differences = [losses[seed] - first[seed] for seed in losses if seed in first]
        interval = _student(differences) if name != names[0] else None
        rate = statistics.median(result.tokens_per_second or 0 for _, result in runs)
        told = "baseline" if name == names[0] else _direction(interval)
        mean = statistics.fmean(losses.values())
        rows.append(
            (
                name,
                count_text(runs[0][0].parameters),
                str(len(losses)),
                f"{mean:.4f}",
                _interval_text(interval),
                told,
                f"{rate:,.0f}",
            )
        )
        findings.figures[name] = {"loss": mean, "losses": losses, "difference": interval}
    header = ("point", "parameters", "seeds", "loss", f"difference from {names[0]}, 95 %", "verdict", "tokens/s")
    findings.tables.append(Table("Loss of every point", header, tuple(rows)))
    findings.plots.append(_ablation_plot(by_point))
    if any(len(runs) < 2 for runs in by_point.values()):
        findings.remarks.append("A point with one seed has no interval: whether it differs, this grid cannot tell.")
    findings.remarks.append("Differences are between runs of the same seed, and their intervals are Student's.")
    return findings


def read_speed(measured: Sequence[Measured]) -> Findings:
    """Training tokens a second by length of the rows."""
    findings, curves, rows = Findings(), {}, []
    for group, runs in _groups(measured, ("length",)).items():
        by_length: dict[int, list[float]] = {}
        for point, result in runs:
            by_length.setdefault(int(point.coordinates["length"]), []).append(result.tokens_per_second or 0.0)
        curves[group] = {length: statistics.median(rates) for length, rates in sorted(by_length.items())}
        rows += [
            (group, f"{length:,}", str(len(rates)), *(f"{of(rates):,.0f}" for of in (statistics.median, min, max)))
            for length, rates in sorted(by_length.items())
        ]
        findings.figures[group] = curves[group]
    header = ("group", "tokens in a row", "runs", "tokens/s, median", "least", "most")
    findings.tables.append(Table("Speed of training by length", header, tuple(rows)))
    with drawing("speed", WIDE, 3.2) as drawn:
        for colour, (group, curve) in zip(_colours(), curves.items(), strict=False):
            drawn.axes.plot(list(curve), list(curve.values()), "o-", color=colour, label=group)
        drawn.axes.set(xscale="log", xlabel="tokens in a row", ylabel="tokens a second", ylim=(0, None))
        drawn.axes.legend()
    findings.plots.append(Plot("Training tokens a second", drawn.svg, wide=True))
    findings.remarks.append(
        "Runs that share a machine share its cores: for speeds to compare, give the grid as many threads as there are "
        "cores."
    )
    return findings


KINDS: dict[str, Kind] = {
    "scaling": Kind(
        "Scaling laws",
        {"size": "models of different sizes", "flops": 'budgets, by key = "flops"'},
        read_scaling,
        {"size": LEAST_SIZES, "flops": LEAST_POINTS},
    ),
    "ablation": Kind("Ablation", {}, read_ablation, has_baseline=True),
    "speed": Kind("Speed", {"length": 'tokens in a row, by key = "stage.0.seq_len"'}, read_speed),
}
"""By the name of ``leyden study NAME``."""


def _groups(measured: Sequence[Measured], without: Sequence[str]) -> dict[str, list[Measured]]:
    """Runs by their coordinates on all other axes; of a grid without any, one group."""
    found: dict[str, list[Measured]] = {}
    for point, result in measured:
        name = ", ".join(value for axis, value in point.coordinates.items() if axis not in without)
        found.setdefault(name or "all runs", []).append((point, result))
    return found


def _loss(result: Result) -> float:
    assert result.loss is not None, "runs without a loss are set aside before"
    return result.loss


def _law_text(law: PowerLaw) -> str:
    low, high = law.interval
    scale = law.at(PFLOPS_DAY)
    return f"{scale:.4g} C^{law.exponent:.4f} ({low:.4f} to {high:.4f})"


def _student(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean; None of fewer than two."""
    if len(values) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def _interval_text(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def _direction(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return "one seed: not told"
    if interval[1] < 0:
        return "better"
    return "worse" if interval[0] > 0 else "not told apart"


def _colours() -> Sequence[str]:
    return COLOURS * 8


def _isoflop_plot(group: str, budgets: Sequence[float], runs: Sequence[Measured], fit: IsoFlopFit | None) -> Plot:
    name = "isoflop-" + "".join(c if c.isalnum() else "-" for c in group)
    with drawing(name, HALF, 3.2) as drawn:
        for colour, budget in zip(_colours(), sorted(set(budgets)), strict=False):
            one = sorted(
                (point.active_parameters, _loss(result))
                for (point, result), of_budget in zip(runs, budgets, strict=True)
                if of_budget == budget
            )
            drawn.axes.plot([n for n, _ in one], [loss for _, loss in one], "o-", color=colour, label=f"{budget:.1e}")
        if fit is not None:
            best = [(one.parameters, one.loss) for one in fit.minima]
            drawn.axes.plot([n for n, _ in best], [loss for _, loss in best], "x--", color="#010101", label="best")
        drawn.axes.set(xscale="log", xlabel="parameters N", ylabel="loss, nats a token")
        drawn.axes.legend(title="FLOPs", fontsize=7)
    return Plot(f"Loss by size at equal operations: {group}", drawn.svg)


def _ablation_plot(by_point: Mapping[str, Sequence[Measured]]) -> Plot:
    with drawing("ablation", WIDE, 1.0 + 0.35 * len(by_point)) as drawn:
        for place, (colour, runs) in enumerate(zip(_colours(), by_point.values(), strict=False)):
            losses = [_loss(result) for _, result in runs]
            drawn.axes.plot(losses, [place] * len(losses), "o", color=colour, alpha=0.7)
            drawn.axes.plot([statistics.fmean(losses)], [place], "|", color=colour, markersize=18)
        drawn.axes.set_yticks(range(len(by_point)), list(by_point))
        drawn.axes.invert_yaxis()
        drawn.axes.set_xlabel("loss, nats a token; a dot a seed, a line their mean")
    return Plot("Loss of every point", drawn.svg, wide=True)
