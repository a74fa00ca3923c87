"""Best of n: what a policy reaches if it may answer n times and the reward chooses."""

from collections.abc import Sequence
from math import comb

import numpy as np


def best_of(rewards: Sequence[float], n: int) -> float:
    """The expected greatest reward of ``n`` of the responses to one prompt, without replacement.

    It is the mean over all choices of n responses, and so without bias for n fresh ones; with rewards of 0 and 1 it is
    pass@n (arXiv 2107.03374, section 2.1).

    Args:
        rewards: of all responses to the prompt.
        n: from 1 to their number.
    """
    rising = np.sort(np.asarray(rewards, np.float64))
    # The i-th smallest (from 1) is the greatest of the choices that hold it and n - 1 of the i - 1 below it.
    shares = [comb(i - 1, n - 1) / comb(len(rising), n) for i in range(1, len(rising) + 1)]
    return float(np.dot(rising, shares))


def best_of_table(groups: Sequence[Sequence[float | None]]) -> dict[str, float]:
    """The mean of :func:`best_of` over prompts, for n = 1, 2, 4, ... up to all responses.

    Args:
        groups: of each prompt the rewards of all its responses. A prompt of which one has none (None), or that has
            fewer responses than another, is left out, so that every n is over the same prompts.
    """
    most = max(map(len, groups), default=0)
    whole = [[one for one in group if one is not None] for group in groups]
    whole = [group for group in whole if len(group) == most]
    if not whole or not most:
        return {}
    sizes = sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)})
    return {str(n): float(np.mean([best_of(group, n) for group in whole])) for n in sizes}
