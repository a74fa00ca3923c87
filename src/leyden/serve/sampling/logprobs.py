"""Log-probabilities as they are reported.

They are those of the model's own distribution, before penalties, filters, grammar and temperature: what OpenAI's and
vLLM's servers report (vLLM's default, "raw_logprobs"). A text is then judged alike however it was drawn, and the same
logits give the same figures for a drawn token and for a token of the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


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


def token_logprobs(logits: torch.Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprobs]:
    """Report ``tokens``, each drawn (or read) in the place that a row of logits foretells.

    Args:
        logits: [R, V] float32, as the model gave them.
        tokens: R of them.
        tops: of how many of the most probable tokens to report in each place.
    """
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    reports = [TokenLogprobs(token, logprob) for token, logprob in zip(tokens, own, strict=True)]
    for count in {*tops} - {0}:
        rows = [row for row, top in enumerate(tops) if top == count]
        for row, top in zip(rows, _most_probable(logprobs[rows], count), strict=True):
            reports[row] = replace(reports[row], top=top)
    return reports


def _most_probable(logprobs: torch.Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """The ``count`` most probable tokens of each row. The greedy one comes first, also where others are as probable."""
    values, ids = logprobs.topk(min(count, logprobs.shape[-1]))
    first = logprobs.argmax(-1, keepdim=True)
    found = ids == first
    place = torch.where(found.any(-1, keepdim=True), found.int().argmax(-1, keepdim=True), 0)
    ids = ids.scatter(-1, place, ids[:, :1]).scatter(-1, torch.zeros_like(place), first)
    rows = zip(ids.tolist(), values.tolist(), strict=True)
    return [tuple(zip(*row, strict=True)) for row in rows]
