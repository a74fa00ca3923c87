"""Pivotal tokens: the few tokens of a response that decide whether it succeeds, as preference pairs of single tokens.

The search is that of Phi-4 (arXiv 2412.08905, section 4.3): the chance of success is estimated before and after a
stretch of tokens, and a stretch that changes it is halved, down to single tokens. Changes that cancel out within a
stretch are not seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from leyden.align.chats.chat import Message
from leyden.tokenizer import Tokenizer

Success = Callable[[Sequence[int]], float]
"""The chance, from 0 to 1, that a response succeeds which begins with some tokens: of completions of the prompt and
these tokens that are drawn from the model, the share that is graded right."""


@dataclass(frozen=True)
class Pivot:
    """A token that changes the chance of success.

    Attributes:
        place: its place in the response.
        before, after: the chance without and with it.
    """

    place: int
    before: float
    after: float


def pivotal_tokens(response: Sequence[int], success: Success, *, least_gap: float = 0.2) -> list[Pivot]:
    """The tokens of a response that change the chance of success by ``least_gap`` or more, in order.

    Args:
        response: its tokens.
        success: asked once for each prefix that is looked at, twice the logarithm of the length for each pivot at most.
        least_gap: above 0.
    """
    known: dict[int, float] = {}

    def chance(length: int) -> float:
        if length not in known:
            known[length] = success(response[:length])
        return known[length]

    def search(first: int, behind: int) -> list[Pivot]:
        before, after = chance(first), chance(behind)
        if first == behind or abs(after - before) < least_gap:
            return []
        if behind - first == 1:
            return [Pivot(first, before, after)]
        middle = (first + behind) // 2
        return search(first, middle) + search(middle, behind)

    return search(0, len(response))


def pivotal_pair(
    prompt: str | list[Message],
    response: Sequence[int],
    pivot: Pivot,
    others: Sequence[int],
    success: Success,
    tokenizer: Tokenizer,
    *,
    least_gap: float = 0.2,
) -> dict[str, Any] | None:
    """A pair of single tokens, of which one is the pivot: a row for stages on preferences.

    Args:
        prompt: of the response.
        response: its tokens.
        pivot: one of its tokens.
        others: tokens that the model may write in place of the pivot, drawn from it.
        success: as of :func:`pivotal_tokens`; asked once for each other token.
        tokenizer: the model's.
        least_gap: by which the chances of both tokens differ at least.

    Returns:
        A row with ``prompt``, ``prefix`` (the response up to there), ``chosen`` and ``rejected``. None where no other
        token does the opposite, or where the text of a token or of the prefix would be read as other tokens.
    """
    prefix, written = list(response[: pivot.place]), response[pivot.place]
    sign = 1 if pivot.after > pivot.before else -1
    chances = {other: success([*prefix, other]) for other in dict.fromkeys(others) if other != written}
    if not chances:
        return None
    other = min(chances, key=lambda token: sign * chances[token])
    if sign * (pivot.after - chances[other]) < least_gap:
        return None
    texts = [tokenizer.decode(ids) for ids in (prefix, [written], [other])]
    if [tokenizer.encode(text) for text in texts] != [prefix, [written], [other]]:
        return None
    chosen, rejected = texts[1:] if sign > 0 else reversed(texts[1:])
    return {"prompt": prompt, "prefix": texts[0], "chosen": chosen, "rejected": rejected}
