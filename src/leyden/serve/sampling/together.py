"""Drawing the tokens of many completions on a GPU at once, without reading anything back on the way.

Each row's token is the one that :func:`leyden.serve.sampling.sampler.invert` gives, but for the rounding of sums, which
are float64 and whose order depends on the number of rows: it decides where the uniform number lies within 1e-15 of a
bound between two tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch

from leyden.core.transfers import send
from leyden.serve.sampling.config import Sampling


def choose_together(samplings: Sequence[Sampling], uniforms: Sequence[float], logits: torch.Tensor) -> torch.Tensor:
    """The next token of each row.

    Args:
        samplings: of the rows.
        uniforms: of the rows, in [0, 1).
        logits: [R, V] float32, adjusted.

    Returns:
        [R] int64 on the device.
    """
    tokens = logits.argmax(-1)
    drawn = [row for row, own in enumerate(samplings) if not own.greedy]
    if not drawn:
        return tokens
    owns, width = [samplings[row] for row in drawn], logits.shape[1]
    rows, uniform, temperature, min_p, n_sigma, top_p, top_k = send(
        [
            np.asarray(drawn, np.int64),
            np.asarray([[uniforms[row]] for row in drawn], np.float64),
            np.asarray([[own.temperature] for own in owns], np.float32),
            np.asarray([[own.min_p] for own in owns], np.float32),
            np.asarray([[own.top_n_sigma or np.inf] for own in owns], np.float64),
            np.asarray([[own.top_p] for own in owns], np.float64),
            np.asarray([[min(own.top_k or width, width)] for own in owns], np.int64),
        ],
        logits.device,
    )
    logits = logits.index_select(0, rows)
    weights = (logits - logits.amax(-1, keepdim=True)).div_(temperature).exp_()
    smallest = min_p
    if any(own.top_n_sigma is not None for own in owns):
        smallest = torch.maximum(smallest, (-n_sigma * _sigma(logits) / temperature).exp().float())
    if any(own.top_k is not None or own.top_p < 1 for own in owns):
        smallest = torch.maximum(smallest, _smallest_of_heads(weights, top_k, top_p))
    weights = weights * (weights >= smallest)
    below = weights.cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(below[:, :-1].contiguous(), uniform * below[:, -1:], right=True)
    return tokens.index_copy_(0, rows, found[:, 0])


def _sigma(logits: torch.Tensor) -> torch.Tensor:
    """[R, 1] float64, the standard deviation of the finite numbers of each row of logits [R, V]."""
    finite, logits = logits.isfinite(), logits.double()
    count = finite.sum(-1, keepdim=True)
    mean = logits.where(finite, 0).sum(-1, keepdim=True) / count
    return ((logits - mean).where(finite, 0).square().sum(-1, keepdim=True) / count).sqrt()


def _smallest_of_heads(weights: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """[R, 1], the smallest weight that both filters keep, of weights [R, V]."""
    falling = weights.sort(-1, descending=True).values
    below = falling.cumsum(-1, dtype=torch.float64)
    last = top_k - 1
    reaching = (below < top_p * below.gather(1, last)).sum(-1, keepdim=True)
    return falling.gather(1, torch.where(top_p < 1, torch.minimum(reaching, last), last))
