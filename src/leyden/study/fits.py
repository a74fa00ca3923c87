"""Fits of scaling studies: power laws, and the best size for a budget from runs of equal operations.

``N`` is a model's size in parameters, ``D`` its training tokens, ``C`` the operations of its training, ``L`` its loss.
The procedure is approach 2 of arXiv 2203.15556 (section 3.2), which MiniMax-01 follows (arXiv 2501.08313, section
2.2.3): for each budget a parabola of the loss over log N, and power laws through the minima of all budgets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from leyden.core.errors import UserError

LEAST_POINTS = 4
"""Of a power law; three would leave its interval one degree of freedom."""
LEAST_SIZES = 4
"""Of a budget: a parabola goes through any three."""
_LEAST_RESAMPLES = 0.8
"""The share of resamples in which every budget has a minimum, below which the data do not tell the exponents."""


@dataclass(frozen=True)
class PowerLaw:
    """``y = scale * x ** exponent``.

    Attributes:
        scale, exponent: by least squares of the logarithms.
        interval: of the exponent, 95 %.
        num_points: that it was fitted to.
    """

    scale: float
    exponent: float
    interval: tuple[float, float]
    num_points: int

    def at(self, x: float) -> float:
        """The law's value."""
        return self.scale * x**self.exponent

    @property
    def is_told(self) -> bool:
        """Whether the data tell so much as the exponent's sign."""
        return self.interval[0] > 0 or self.interval[1] < 0


def fit_power_law(x: Sequence[float], y: Sequence[float], what: str = "points") -> PowerLaw:
    """Fit a power law; its interval is Student's, of residuals in the logarithms.

    Raises:
        UserError: fewer than 4 different x, or a value that is not a number above 0.
    """
    given = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not all(np.isfinite(values).all() and (values > 0).all() for values in given):
        raise UserError("a power law is fitted to finite numbers above 0 alone.")
    different = len(set(map(float, x)))
    if different < LEAST_POINTS:
        raise UserError(
            f"a power law needs at least {LEAST_POINTS} different {what}; given {different}. Two always lie on a law, "
            "and three leave nothing to tell how far it can be off; add more to the grid."
        )
    found: Any = stats.linregress(np.log(given[0]), np.log(given[1]))
    half = float(stats.t.ppf(0.975, len(x) - 2) * found.stderr)
    exponent = float(found.slope)
    return PowerLaw(float(np.exp(found.intercept)), exponent, (exponent - half, exponent + half), len(x))


@dataclass(frozen=True)
class Minimum:
    """The best size for one budget.

    Attributes:
        flops: the budget, C.
        parameters, tokens, loss: at the parabola's minimum.
    """

    flops: float
    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class IsoFlopFit:
    """What a grid of sizes and budgets says.

    Attributes:
        minima: of the budgets that have one within their sizes.
        left_out: in words, every budget without one.
        parameters, tokens, loss: the laws of C; their intervals are of a bootstrap of the runs' residuals.
        untold: in words, why the data do not tell the exponents; empty where they do.
    """

    minima: tuple[Minimum, ...]
    left_out: tuple[str, ...]
    parameters: PowerLaw
    tokens: PowerLaw
    loss: PowerLaw
    untold: str


def fit_isoflops(
    flops: Sequence[float],
    parameters: Sequence[float],
    tokens: Sequence[float],
    losses: Sequence[float],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> IsoFlopFit:
    """Fit the three laws, and bootstrap them: residuals of all parabolas are pooled, drawn anew and fitted again.

    Args:
        flops: [R] the budget of each run; runs of one budget have equal values.
        parameters, tokens, losses: [R] of each run.
        resamples: of the bootstrap.
        seed: of its draws.

    Raises:
        UserError: fewer than 4 budgets with at least 4 different sizes and a minimum between them.
    """
    C, N, D, L = (np.asarray(values, np.float64) for values in (flops, parameters, tokens, losses))
    budgets, left_out = [], []
    for budget in sorted(set(C.tolist())):
        one = _Budget(budget, N[budget == C], D[budget == C], L[budget == C])
        reason = one.why_not()
        if reason:
            left_out.append(f"{budget:.3g} FLOPs: {reason}")
        else:
            budgets.append(one)
    if len(budgets) < LEAST_POINTS:
        raise UserError(
            f"scaling laws need at least {LEAST_POINTS} budgets that have a best size among theirs; there are "
            f"{len(budgets)}.{' Left out: ' * bool(left_out)}{'; '.join(left_out)}{'.' * bool(left_out)} Add budgets, "
            "or sizes on the side where the loss still falls."
        )
    minima = [one.minimum(one.losses) for one in budgets]
    laws = _laws(minima)
    drawn = _bootstrap(budgets, resamples, np.random.default_rng(seed))
    parameters_law, tokens_law, loss_law = (
        PowerLaw(law.scale, law.exponent, _percentiles(drawn[:, index]), law.num_points)
        for index, law in enumerate(laws)
    )
    return IsoFlopFit(
        tuple(minima),
        tuple(left_out),
        parameters_law,
        tokens_law,
        loss_law,
        _untold(len(drawn) / resamples, parameters_law, tokens_law, loss_law),
    )


class _Budget:
    """The runs of one budget, and their parabola over log N."""

    def __init__(self, flops: float, parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> None:
        self.flops, self.losses = flops, losses
        self._sizes = np.log(parameters)
        self._middle = self._sizes.mean()
        self._tokens = np.log(tokens)
        self._design = np.stack([np.ones_like(self._sizes), self._centred, self._centred**2], axis=1)

    @property
    def _centred(self) -> np.ndarray:
        return self._sizes - self._middle

    def why_not(self) -> str:
        """Why there is no minimum among the sizes, in words; empty where there is one."""
        different = len(set(self._sizes.tolist()))
        if different < LEAST_SIZES:
            return f"{different} different sizes, and a parabola with something left over needs {LEAST_SIZES}"
        _, slope, curvature = self._fit(self.losses)
        if curvature <= 0:
            return "the loss has no minimum over the sizes"
        best = -slope / (2 * curvature)
        if best < self._centred.min():
            return "the best size is below the smallest"
        return "the best size is above the largest" if best > self._centred.max() else ""

    def minimum(self, losses: np.ndarray) -> Minimum | None:
        """Of the parabola through ``losses``; None where it opens downwards."""
        offset, slope, curvature = self._fit(losses)
        if curvature <= 0:
            return None
        best = -slope / (2 * curvature)
        tokens_fall, tokens_at = np.polyfit(self._centred, self._tokens, 1)
        return Minimum(
            self.flops,
            float(np.exp(best + self._middle)),
            float(np.exp(tokens_at + tokens_fall * best)),
            float(offset - slope**2 / (4 * curvature)),
        )

    def fitted(self) -> np.ndarray:
        """[R] the parabola at every run."""
        return self._design @ self._fit(self.losses)

    def _fit(self, losses: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(self._design, losses, rcond=None)[0]


def _laws(minima: Sequence[Minimum]) -> tuple[PowerLaw, PowerLaw, PowerLaw]:
    C = [one.flops for one in minima]
    return (
        fit_power_law(C, [one.parameters for one in minima], "budgets"),
        fit_power_law(C, [one.tokens for one in minima], "budgets"),
        fit_power_law(C, [one.loss for one in minima], "budgets"),
    )


def _bootstrap(budgets: Sequence[_Budget], resamples: int, generator: np.random.Generator) -> np.ndarray:
    """[resamples that have all minima, 3] exponents. Residuals are widened by the freedom that the parabolas took."""
    fitted = [one.fitted() for one in budgets]
    residuals = np.concatenate([one.losses - fit for one, fit in zip(budgets, fitted, strict=True)])
    residuals *= np.sqrt(len(residuals) / (len(residuals) - 3 * len(budgets)))
    found = []
    for _ in range(resamples):
        minima = [
            one.minimum(fit + generator.choice(residuals, len(fit))) for one, fit in zip(budgets, fitted, strict=True)
        ]
        whole = [one for one in minima if one is not None and one.loss > 0]
        if len(whole) == len(budgets):
            found.append([law.exponent for law in _laws(whole)])
    return np.array(found).reshape(-1, 3)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return -np.inf, np.inf
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _untold(share: float, *laws: PowerLaw) -> str:
    if share < _LEAST_RESAMPLES:
        return (
            f"in {1 - share:.0%} of the resamples some budget has no best size: the losses of its sizes differ by less "
            "than the noise. Add seeds, or sizes that lie further apart."
        )
    names = ("N", "D", "L")
    open_ = [name for name, law in zip(names, laws, strict=True) if not law.is_told]
    if open_:
        return f"the interval of the exponent of {' and '.join(open_)} includes 0: the data do not tell its sign."
    return ""
