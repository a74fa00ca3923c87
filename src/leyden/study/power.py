"""How many runs and items a test needs, and how small an effect it can find: power analysis before anything is run.

MiniMax-01 plans for 95 % confidence and 80 % power (arXiv 2501.08313, section 4.1.3). Power comes from statsmodels'
noncentral t; what is ours is the standard error of an effect between runs and items that are both samples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from leyden.core.errors import UserError
from leyden.study.hypothesis import check_tables, residual_variance
from leyden.study.metric import ScoreTable, benchmark, weighted_means

_MAX_SEEDS = 1000


@dataclass(frozen=True)
class Noise:
    """What makes an effect uncertain, of the weighted mean over benchmarks.

    Attributes:
        run: variance of a run's true mean: another seed, all items together.
        rest: ``rest / n`` is the variance that n items leave in one run's mean by chance of run and item together.
        uneven: variance over items of how much the variant matters to them, where the effect is ``of_effect``. A
            smaller effect is taken to fall on items in the same proportions, so its variance falls with its square; a
            larger one to be no more uneven.
        of_effect: the pilot's, at which ``uneven`` was measured.
    """

    run: float
    rest: float
    uneven: float = 0.0
    of_effect: float = 1.0

    def standard_error(self, effect: float, num_seeds: int, num_items: int) -> float:
        """Of an effect between two variants of ``num_seeds`` runs each."""
        return math.sqrt(self._of_runs(num_seeds, num_items) + self._of_items(effect, num_items))

    def df(self, effect: float, num_seeds: int, num_items: int) -> float:
        """Degrees of freedom of the test, by Satterthwaite's rule."""
        runs, items = self._of_runs(num_seeds, num_items), self._of_items(effect, num_items)
        return (runs + items) ** 2 / (runs**2 / (2 * num_seeds - 2) + items**2 / (num_items - 1))

    def _of_runs(self, num_seeds: int, num_items: int) -> float:
        return 2 * (self.run + self.rest / num_items) / num_seeds

    def _of_items(self, effect: float, num_items: int) -> float:
        share = min(1.0, abs(effect / self.of_effect)) if self.of_effect else 1.0
        return self.uneven * share**2 / num_items


def measure_noise(treatment: ScoreTable, baseline: ScoreTable, weights: Mapping[str, float]) -> Noise:
    """The noise that two variants' pilot runs show; their effect shows how unevenly items take it.

    Raises:
        UserError: as :func:`leyden.study.hypothesis.check_tables`.
    """
    check_tables(treatment, baseline, weights)
    arms = (treatment, baseline)
    num_items = sum(benchmark(baseline, name).shape[1] for name in weights)
    left = [  # of the variance of a run's mean, an arm
        sum(w**2 * residual_variance(benchmark(s, name)) / benchmark(s, name).shape[1] for name, w in weights.items())
        for s in arms
    ]
    runs = np.average(
        [weighted_means(s, weights).var(ddof=1) for s in arms],
        weights=[len(weighted_means(s, weights)) - 1 for s in arms],
    )
    effect = float(weighted_means(treatment, weights).mean() - weighted_means(baseline, weights).mean())
    interaction = 0.0
    for name, weight in weights.items():
        ours, theirs = benchmark(treatment, name), benchmark(baseline, name)
        between = float((ours.mean(axis=0) - theirs.mean(axis=0)).var(ddof=1))
        chance = sum(residual_variance(x) / x.shape[0] for x in (ours, theirs))
        interaction += weight**2 * max(0.0, between - chance) / ours.shape[1]
    return Noise(
        run=max(0.0, float(runs) - float(np.mean(left))),
        rest=float(np.mean(left)) * num_items,
        uneven=interaction * num_items,
        of_effect=abs(effect),
    )


def power_of(noise: Noise, effect: float, num_seeds: int, num_items: int, alpha: float = 0.05) -> float:
    """The chance that the crossed test finds ``effect``."""
    if num_seeds < 2 or num_items < 2:
        raise UserError(f"power needs at least 2 seeds and 2 items; given: {num_seeds} and {num_items}.")
    error = noise.standard_error(effect, num_seeds, num_items)
    power = _t_power().power(
        effect_size=effect / error, nobs=1, alpha=alpha, df=noise.df(effect, num_seeds, num_items), alternative="larger"
    )
    return float(power)


def minimum_detectable_effect(
    noise: Noise, num_seeds: int, num_items: int, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The effect that is found with a chance of ``power``.

    Raises:
        UserError: the pilot's runs do not vary at all.
    """
    from scipy import optimize

    unit = noise.standard_error(0.0, num_seeds, num_items)
    if unit == 0:
        raise UserError("the pilot's runs do not vary, so no effect would be too small; are they copies of each other?")

    def lacks(effect: float) -> float:
        return power_of(noise, effect, num_seeds, num_items, alpha) - power

    high = unit
    while lacks(high) < 0:
        high *= 2
    return float(optimize.brentq(lacks, 0.0, high, xtol=1e-12, rtol=1e-10))  # pyright: ignore[reportArgumentType]


def seeds_needed(
    noise: Noise, effect: float, num_items: int, *, alpha: float = 0.05, power: float = 0.8, most: int = _MAX_SEEDS
) -> int:
    """The fewest runs of each variant that find ``effect`` with a chance of ``power``.

    Raises:
        UserError: even ``most`` runs do not.
    """
    if effect <= 0:
        raise UserError(f"the smallest effect of interest must be positive; given: {effect}.")
    for num_seeds in range(2, most + 1):
        if power_of(noise, effect, num_seeds, num_items, alpha) >= power:
            return num_seeds
    raise UserError(
        f"an effect of {effect:g} is not found with a chance of {power:.0%} by {most} seeds on {num_items} items (the "
        f"smallest that is: {minimum_detectable_effect(noise, most, num_items, alpha=alpha, power=power):.3g}). Give "
        "more items or seeds, or look for a larger effect."
    )


def paired_items_needed(effect: float, sd: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Items that a one-sided paired t test needs to find ``effect`` among differences of standard deviation ``sd``."""
    _check_positive(effect, sd)
    number = _t_power().solve_power(effect_size=effect / sd, alpha=alpha, power=power, alternative="larger")
    return max(2, math.ceil(float(np.squeeze(number))))


def paired_minimum_effect(num_items: int, sd: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """What a one-sided paired t test on ``num_items`` items finds with a chance of ``power``."""
    _check_positive(1.0, sd)
    size = _t_power().solve_power(nobs=num_items, alpha=alpha, power=power, alternative="larger")
    return float(np.squeeze(size)) * sd


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
    levels: dict[str, Any] = {"alpha": alpha, "power": power}
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


def _check_positive(effect: float, sd: float) -> None:
    if effect <= 0 or sd <= 0:
        raise UserError(f"effect and standard deviation must be positive; given: {effect:g} and {sd:g}.")


def _t_power() -> Any:
    from statsmodels.stats.power import TTestPower

    return TTestPower()
