"""What tasks that hide something share: the depths, putting a prompt as a text to go on from or as a chat, and
taking a part of a grid."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from leyden.evaluate.task import Question, TaskItem
from leyden.tokenizer import Tokenizer

T = TypeVar("T")

CHAT_TOKENS = 64
"""Kept free for what a chat template writes around one turn."""


def ask(
    tokenizer: Tokenizer, prompt: Sequence[int], expected: Sequence[str], *, max_tokens: int, chat: bool
) -> Question:
    """A question in words.

    Args:
        tokenizer: the prompt's.
        prompt: token ids, without the one that begins a document.
        expected: the texts that a right answer holds.
        max_tokens: of the answer.
        chat: whether the model is asked by its chat template.
    """
    if not chat:
        return Question([tokenizer.bos_id, *prompt], tuple(expected), max_tokens)
    text = tokenizer.decode(prompt)
    return Question([{"role": "user", "content": text}], tuple(expected), max_tokens)


def even_depths(count: int) -> tuple[float, ...]:
    """``count`` places in percent, evenly from 0 to 100; the middle for a single one."""
    return (50.0,) if count == 1 else tuple(round(100 * place / (count - 1), 2) for place in range(count))


def evenly(things: Sequence[T], limit: int | None, cell: Callable[[T], Hashable]) -> list[T]:
    """At most ``limit`` of ``things``, from all cells as evenly as they go, in their order.

    Each round takes the next one of every cell. The last round, which does not reach all cells, takes from cells that
    are evenly spread over their order.

    Args:
        things: all of them.
        limit: at least 1; None: all.
        cell: what those of a cell have in common.
    """
    if limit is None or limit >= len(things):
        return list(things)
    cells: dict[Hashable, list[int]] = {}
    for place, thing in enumerate(things):
        cells.setdefault(cell(thing), []).append(place)
    places: list[int] = []
    while len(places) < limit:
        heads, room = [queue for queue in cells.values() if queue], limit - len(places)
        if room < len(heads):
            heads = [heads[(2 * number + 1) * len(heads) // (2 * room)] for number in range(room)]
        places += [queue.pop(0) for queue in heads]
    return [things[place] for place in sorted(places)]


def some_of_grid(items: Sequence[TaskItem], limit: int | None) -> list[TaskItem]:
    """:func:`evenly` from the cells of a grid: the items whose facts are alike but for ``sample``."""
    return evenly(items, limit, lambda item: tuple((name, v) for name, v in item.facts.items() if name != "sample"))
