"""Which benchmarks can tell models of this size apart: the gap of an obvious difference over the noise of seeds."""

from dataclasses import dataclass

import numpy as np

from leyden.core.errors import UserError
from leyden.study.metric import ScoreTable, benchmark


@dataclass(frozen=True)
class Discriminability:
    """One benchmark's.

    Attributes:
        benchmark: its name.
        gap: mean score of the better model minus that of the obviously worse one.
        seed_sd: standard deviation of a run's mean over seeds, pooled over both.
        ratio: ``gap / seed_sd``, Delta_obvious / sigma_seed of arXiv 2501.08313, section 4.1.3.
    """

    benchmark: str
    gap: float
    seed_sd: float
    ratio: float


def discriminability(better: ScoreTable, worse: ScoreTable) -> list[Discriminability]:
    """Every benchmark's, the most telling first.

    Args:
        better: [S, I] a benchmark, runs of one variant that differ in their seed.
        worse: runs of a variant that is obviously worse.

    Raises:
        UserError: one run of a variant.
    """
    found = []
    for name in better:
        good, bad = benchmark(better, name).mean(axis=1), benchmark(worse, name).mean(axis=1)
        if min(len(good), len(bad)) < 2:
            raise UserError("the noise of seeds needs at least 2 runs of each variant.")
        degrees = [len(good) - 1, len(bad) - 1]
        sd = float(np.sqrt(np.average([good.var(ddof=1), bad.var(ddof=1)], weights=degrees)))
        gap = float(good.mean() - bad.mean())
        found.append(Discriminability(name, gap, sd, gap / sd if sd else float(np.inf) * np.sign(gap)))
    return sorted(found, key=lambda one: -one.ratio)


def select(found: list[Discriminability], least: float) -> list[str]:
    """The benchmarks whose ratio is at least ``least``.

    Raises:
        UserError: none is.
    """
    chosen = [one.benchmark for one in found if one.ratio >= least]
    if not chosen:
        ratios = ", ".join(f"{one.benchmark} {one.ratio:.2f}" for one in found)
        raise UserError(
            f"no benchmark tells the obviously worse variant from the other by {least:g} standard deviations of a seed "
            f"({ratios}). Train longer, give more items, or lower min_discriminability."
        )
    return chosen
