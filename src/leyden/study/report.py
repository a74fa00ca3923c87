"""A plan, a verdict and null experiments in words and tables, for a terminal."""

from pathlib import Path

from leyden.study.null import NullResult, Rate, run_null
from leyden.study.plan import StudyPlan
from leyden.study.plots import draw_null, draw_verdict
from leyden.study.verdict import Verdict, give_verdict


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


def tell_plan(plan: StudyPlan) -> str:
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
    if plan.epochs:
        said = ", ".join(f"{name} {epochs:.2f}" for name, epochs in plan.epochs.items())
        lines.append(f"  a run uses the documents that it uses so many times: {said}")
    if plan.effect is not None:
        lines.append(
            f"  the smallest effect that matters, {plan.effect:g}, is found with a chance of {plan.power_at_effect:.0%}"
        )
    return "\n".join(lines)


def tell_verdict(plan: StudyPlan, verdict: Verdict) -> str:
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
