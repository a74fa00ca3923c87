"""What tasks that hide something share: the depths, and putting a prompt as a text to go on from or as a chat."""

from collections.abc import Sequence

from leyden.evaluate.task import Question
from leyden.tokenizer import Tokenizer

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
