"""Log-probabilities as they are reported.

They are those of the model's own distribution, before penalties, filters, grammar and temperature: what OpenAI's and
vLLM's servers report (vLLM's default, "raw_logprobs"). A text is then judged alike however it was drawn, and the same
logits give the same figures for a drawn token and for a token of the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from leyden.core.transfers import pick


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probabilities (natural) of one token, and of the most probable ones in its place.

    Attributes:
        token: which it is.
        logprob: its own.
        top: pairs of token and log-probability, the most probable first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def measure(logits: torch.Tensor, tokens: torch.Tensor, tops: Sequence[int]) -> list[torch.Tensor]:
    """What :func:`reports` tells of tokens, each drawn (or read) in the place that a row of logits foretells.

    Args:
        logits: [R, V] float32, as the model gave them.
        tokens: [R] int64, on the device of the logits.
        tops: of how many of the most probable tokens to report in each place.

    Returns:
        The log-probabilities [R] of the tokens; then, for each number of ``tops`` but 0, in rising order, the ids and
        the log-probabilities of so many most probable tokens [rows that want so many, number].
    """
    logprobs = logits.log_softmax(-1)
    measured = [logprobs.gather(-1, tokens[:, None])[:, 0]]
    for count in sorted({*tops} - {0}):
        measured += _most_probable(pick(logprobs, [row for row, top in enumerate(tops) if top == count]), count)
    return measured


def reports(tokens: Sequence[int], tops: Sequence[int], measured: Sequence[torch.Tensor]) -> list[TokenLogprobs]:
    """One a row, from what :func:`measure` gave, on the host."""
    told = [TokenLogprobs(token, logprob) for token, logprob in zip(tokens, measured[0].tolist(), strict=True)]
    for i, count in enumerate(sorted({*tops} - {0})):
        ids, values = measured[1 + 2 * i].tolist(), measured[2 + 2 * i].tolist()
        rows = [row for row, top in enumerate(tops) if top == count]
        for row, *top in zip(rows, ids, values, strict=True):
            told[row] = replace(told[row], top=tuple(zip(*top, strict=True)))
    return told


def _most_probable(logprobs: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The ``count`` most probable tokens of each row, and their log-probabilities.

    The greedy one comes first, also where others are as probable.
    """
    values, ids = logprobs.topk(min(count, logprobs.shape[-1]))
    first = logprobs.argmax(-1, keepdim=True)
    found = ids == first
    place = torch.where(found.any(-1, keepdim=True), found.int().argmax(-1, keepdim=True), 0)
    ids = ids.scatter(-1, place, ids[:, :1]).scatter(-1, torch.zeros_like(place), first)
    return [ids, values]
