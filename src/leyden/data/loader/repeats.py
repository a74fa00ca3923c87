"""Long runs of one n-gram over and over, which are a known cause of loss spikes.

The rule is that of OLMo 2 (arXiv 2501.00656, section 3.1): an n-gram of 1 to 13 tokens that follows itself, 32 times or
more in all.
"""

import numpy as np

_LONGEST = 13
_TIMES = 32


def repeated(tokens: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Which tokens lie in such a run: [T] bool.

    Args:
        tokens: [T] integers.
        bounds: [N + 1], where each document begins, and the end; no run crosses them.
    """
    found = np.zeros(len(tokens), bool)
    document = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    for period in range(1, _LONGEST + 1):
        # A run of such places of length (times - 1) * period is an n-gram that stands there so many times.
        same = (tokens[period:] == tokens[:-period]) & (document[period:] == document[:-period])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]])))
        for start, stop in edges.reshape(-1, 2).tolist():
            if stop - start >= (_TIMES - 1) * period:
                found[start : stop + period] = True
    return found
