"""A plan, a verdict and null experiments in words and tables, for a terminal."""

from pathlib import Path
from typing import TypedDict

from leyden.core.errors import UserError
from leyden.study.null import NullResult, Rate, run_null
from leyden.study.plan import Plan
from leyden.study.plots import draw_null, draw_verdict
from leyden.study.power import (
    Noise,
    minimum_detectable_effect,
    paired_items_needed,
    paired_minimum_effect,
    seeds_needed,
)
from leyden.study.verdict import Verdict, give_verdict


class _Levels(TypedDict):
    alpha: float
    power: float


def read_verdict(directory: Path) -> str:
    """Give the verdict of a study, draw ``verdict.svg``, and say it; errors as :func:`give_verdict`."""
    plan, verdict = give_verdict(directory)
    draw_verdict(plan, verdict, directory / "verdict.svg")
    return tell_verdict(plan, verdict)


def read_null(directory: Path, *, num_runs: int, num_splits: int = 2000, num_simulated: int = 4000) -> str:
    """Run null experiments, draw ``null.svg``, and say what they showed; errors as :func:`run_null`."""
    result = run_null(directory, num_runs=num_runs, num_splits=num_splits, num_simulated=num_simulated)
    draw_null(result, directory / "null.svg")
    return tell_null(result)


def tell_plan(plan: Plan) -> str:
    """What will be tested and what that can find."""
    lines = [f"plan {plan.fingerprint[:12]}: {plan.name}", f"  H1: {plan.hypothesis}", f"  rule: {plan.rule}"]
    lines.append("  benchmark           items  weight  Delta_obvious  sigma_seed    ratio")
    for one in plan.discriminability:
        weight = plan.weights.get(one.benchmark)
        use = f"{plan.num_items[one.benchmark]:>5}  {weight:6.3f}" if weight else "    -  unused"
        lines.append(f"  {one.benchmark:<18}  {use}  {one.gap:13.4g}  {one.seed_sd:10.4g}  {one.ratio:7.2f}")
    lines.append(
        f"  {len(plan.seeds['baseline'])} runs of each variant; minimum detectable effect "
        f"{plan.minimum_detectable_effect:.4g} at {1 - plan.alpha:.0%} confidence and {plan.power:.0%} power"
    )
    if plan.effect is not None:
        lines.append(
            f"  the smallest effect that matters, {plan.effect:g}, is found with a chance of {plan.power_at_effect:.0%}"
        )
    return "\n".join(lines)


def tell_verdict(plan: Plan, verdict: Verdict) -> str:
    """The decision, and every test beside it."""
    lines = [verdict.sentence, f"  by plan {plan.fingerprint[:12]}: {plan.test} test, {plan.reading} reading"]
    lines.append("  reading     test             effect   std. error     df        p")
    for reading, found in verdict.findings.items():
        for name, test in found.tests.items():
            figures = f"{test.effect:+8.4g}  {test.standard_error:11.4g}  {test.df:5.1f}  {test.p:7.2g}"
            lines.append(f"  {reading:<10}  {name:<13}  {figures}")
        lines.append(f"  {reading:<10}  runs, permuted {'':<31}  {found.permuted_runs:7.2g}")
        lines.append(f"  {reading:<10}  items, flipped {'':<31}  {found.flipped_items:7.2g}")
        low, high = found.bootstrap
        lines.append(f"  {reading:<10}  bootstrap of runs and items: {low:+.4g} to {high:+.4g}")
    return "\n".join(lines)


def tell_null(result: NullResult) -> str:
    """False-positive rates beside what they should be."""
    lines = [
        f"null experiments of {result.num_seeds} against {result.num_seeds} runs, {result.num_items} items, level "
        f"{result.alpha:g}",
        f"  test         false positives, real ({result.num_runs} runs)    simulated          power at "
        f"{result.effect:.3g}",
    ]
    for name, rate in result.real.items():
        simulated, power = result.simulated.get(name), result.power.get(name)
        lines.append(f"  {name:<11}  {_share(rate):<35}  {_share(simulated):<17}  {_share(power)}")
    return "\n".join(lines)


def _share(rate: Rate | None) -> str:
    if rate is None:
        return "-"
    error = "" if rate.standard_error is None else f" ± {rate.standard_error:.1%}"
    return f"{rate.value:6.1%}{error}"


def tell_power(
    sd: float,
    *,
    effect: float | None,
    items: int | None,
    run_sd: float,
    seeds: int,
    alpha: float,
    power: float,
) -> str:
    """A power analysis from standard deviations alone.

    Args:
        sd: of the items' paired differences between two runs.
        effect: the smallest that matters, or None.
        items: how many there are, or None.
        run_sd: of a run's mean over all items, between seeds; 0 leaves runs out.
        seeds: runs of each variant.
        alpha: level of the test.
        power: chance to find the effect.

    Raises:
        UserError: neither effect nor items.
    """
    if effect is None and items is None:
        raise UserError("give --effect for the items that it needs, or --items for the effect that they find.")
    levels = _Levels(alpha=alpha, power=power)
    lines = [f"one-sided, {1 - alpha:.0%} confidence, {power:.0%} power"]
    if effect is not None:
        needed = paired_items_needed(effect, sd, **levels)
        lines.append(f"these two models: an effect of {effect:g} needs {needed:,} items (paired t)")
    if items is not None:
        least = paired_minimum_effect(items, sd, **levels)
        lines.append(f"these two models: {items:,} items find an effect of {least:.4g} (paired t)")
    if run_sd > 0 and items is not None:
        noise = Noise(run=run_sd**2, rest=sd**2 / 2)
        found = minimum_detectable_effect(noise, seeds, items, **levels)
        lines.append(f"any models: {seeds} seeds of each variant on {items:,} items find an effect of {found:.4g}")
        if effect is not None:
            count = seeds_needed(noise, effect, items, **levels)
            lines.append(f"any models: an effect of {effect:g} on {items:,} items needs {count} seeds of each variant")
    return "\n".join(lines)
