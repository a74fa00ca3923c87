"""How large a model to train on how many tokens, so that a budget of operations is spent best: published laws.

A law was fitted by its authors on their data, their tokenizer and their kind of model; two that differ by a factor of
two agree well. ``N`` is the number of parameters, ``D`` of tokens, ``C`` of floating-point operations in training.
"""

from collections.abc import Callable
from dataclasses import dataclass

PFLOPS_DAY = 1e15 * 86_400
"""Operations of a day at 10^15 a second."""


@dataclass(frozen=True)
class Proposal:
    """What a law proposes.

    Attributes:
        parameters: N.
        tokens: D.
        loss: in nats a token on the authors' data, where the law says it.
    """

    parameters: float
    tokens: float
    loss: float | None = None


@dataclass(frozen=True)
class ScalingLaw:
    """A published law.

    Attributes:
        name: of the law.
        source: the publication, and the place in it.
        propose: from C to what is proposed for it.
    """

    name: str
    source: str
    propose: Callable[[float], Proposal]


def frontier(parameters: float, flops: float, exponent: float) -> Callable[[float], Proposal]:
    """``N = parameters (C / flops)^exponent`` through one published point, with ``D = C / 6N``."""

    def propose(budget: float) -> Proposal:
        best = parameters * (budget / flops) ** exponent
        return Proposal(best, budget / (6 * best))

    return propose


def parametric(E: float, A: float, B: float, alpha: float, beta: float) -> Callable[[float], Proposal]:
    """The minimum of ``L = E + A / N^alpha + B / D^beta`` under ``C = 6 N D`` (arXiv 2203.15556, equations 2 to 4)."""

    def propose(budget: float) -> Proposal:
        scale = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
        N = scale * (budget / 6) ** (beta / (alpha + beta))
        D = (budget / 6) ** (alpha / (alpha + beta)) / scale
        return Proposal(N, D, E + A / N**alpha + B / D**beta)

    return propose


def power_laws(
    loss: tuple[float, float], parameters: tuple[float, float], tokens: tuple[float, float]
) -> Callable[[float], Proposal]:
    """``a C^b`` for each of the three, C in PFLOP/s-days; they are fits of their own, not bound to ``C = 6 N D``."""

    def propose(budget: float) -> Proposal:
        days = budget / PFLOPS_DAY
        L, N, D = (scale * days**exponent for scale, exponent in (loss, parameters, tokens))
        return Proposal(N, D, L)

    return propose


_CHINCHILLA, _MINIMAX = "Hoffmann et al. 2022, arXiv 2203.15556", "MiniMax-01, arXiv 2501.08313, Table 2"

LAWS = (
    ScalingLaw(
        "Chinchilla, approach 1: training curves",
        f"{_CHINCHILLA}, Tables 2 and 3",
        frontier(1e9, 1.21e20, 0.50),
    ),
    ScalingLaw(
        "Chinchilla, approach 2: equal operations",
        f"{_CHINCHILLA}, Tables 2 and A3",
        frontier(1e9, 1.20e20, 0.49),
    ),
    ScalingLaw(
        # The constants before rounding, which the source of the paper has; the rounded ones give other sizes.
        "Chinchilla, approach 3: parametric loss",
        f"{_CHINCHILLA}, equation 10; constants before rounding as in Besiroglu et al. 2024, arXiv 2404.10102",
        parametric(1.6934, 406.4, 410.7, 0.3392, 0.2849),
    ),
    ScalingLaw(
        "Chinchilla, approach 3, fitted again",
        "Besiroglu et al. 2024, arXiv 2404.10102",
        parametric(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
    ),
    ScalingLaw("softmax attention", _MINIMAX, power_laws((3.7087, -0.0798), (1.82e8, 0.7118), (2.56e10, 0.5102))),
    ScalingLaw("lightning attention", _MINIMAX, power_laws((3.5391, -0.0768), (2.74e8, 0.6470), (4.43e10, 0.4684))),
    ScalingLaw(
        "hybrid of 7 lightning and 1 softmax layers",
        _MINIMAX,
        power_laws((3.4797, -0.0763), (2.57e8, 0.6670), (3.70e10, 0.4707)),
    ),
)
"""In the order in which they are shown."""
