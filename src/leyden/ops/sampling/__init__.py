"""Tokens drawn from rows of logits, all rows by one call of native code; see ``native.cpp``.

Its slow twin, which every device has, is ``invert`` of ``leyden.serve.sampling.sampler``: both compute the same
sums, but round exponentials by themselves.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from leyden.ops.native import UnavailableError, in_reach, load, prepare


class Filters(NamedTuple):
    """How a row is drawn from.

    Attributes:
        temperature: 0 takes the first of the largest logits, and then nothing else counts.
        top_k: how many of the most probable tokens are kept; ``inf`` for all.
        top_p: the probability that the kept tokens reach together; 1 keeps all.
        min_p: the least probability that is kept, relative to the largest.
        top_n_sigma: by how many standard deviations of the finite logits a kept one may lie under the largest; ``inf``
            keeps all.
        uniform: in [0, 1), at which the distribution function is inverted.
    """

    temperature: float
    top_k: float
    top_p: float
    min_p: float
    top_n_sigma: float
    uniform: float


def can_sample(logits: torch.Tensor) -> bool:
    """Whether :func:`sample` computes on such logits on this machine."""
    plain = logits.dtype is torch.float32 and logits.stride(-1) == 1 and in_reach(logits)
    return plain and not isinstance(load(), UnavailableError)


def filter_table(filters: Sequence[Filters]) -> torch.Tensor:
    """The filters of rows as :func:`sample` takes them: [R, fields] float64, whose last column has the uniforms."""
    return torch.tensor(filters, dtype=torch.float64, device="cpu")


def sample(logits: torch.Tensor, filters: torch.Tensor) -> list[int]:
    """The token of each row at which the distribution function, of what the filters keep, first exceeds ``uniform``.

    A row's token does not depend on the others, nor on the number of threads.

    Args:
        logits: [R, V] float32 on the CPU, whose rows are contiguous; not changed. -inf is a token that is not drawn.
        filters: of each row, by :func:`filter_table`.

    Raises:
        ValueError: the logits are none such, or there are not as many filters as rows.
        UnavailableError: there is no native library here.
    """
    return prepare_sample(logits, filters)()


def prepare_sample(logits: torch.Tensor, filters: torch.Tensor) -> Callable[[], list[int]]:
    """What gives :func:`sample` of these two tensors, whose values may become others, each time it is called.

    Raises:
        ValueError, UnavailableError: as there.
    """
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device="cpu")
    draw = prepare("leyden_sample", logits, filters, rows, vocab, len(Filters._fields), tokens)

    def sampled() -> list[int]:
        draw()
        return tokens.tolist()

    return sampled
