"""Preference pairs to tokens: two documents a pair, the chosen answer and then the rejected one, each with its prompt.

The prompt is read and not learned; so are answers of the assistant within it, which both sides have in common.
"""

import json
from collections.abc import Iterable, Iterator

import numpy as np

from leyden.align.chats.chat import Message, Preference
from leyden.align.chats.tokens import RowCounts, encode_learned, num_bytes, refused, require_template, set_aside
from leyden.core.errors import UserError
from leyden.data.hold_out_rule import draw
from leyden.data.tokenise import TokenisedDocument
from leyden.tokenizer import Tokenizer

EQUAL = "equal answers"
"""The reason to set a pair aside that has nothing to tell apart."""


class PairCounts(RowCounts):
    """Of pairs; ``answers`` has two of each."""

    noun = "pairs"

    def __str__(self) -> str:
        return (
            f"{self.rows:,} of two answers, {self.tokens:,} tokens, of them {self.answer_tokens:,} of the answers; "
            f"{self.set_aside()}"
        )


def tokenise_pairs(
    pairs: Iterable[Preference], tokenizer: Tokenizer, counts: PairCounts
) -> Iterator[TokenisedDocument]:
    """Each pair as two documents.

    Args:
        pairs: as :func:`~leyden.align.chats.read.read_preferences` gives them.
        tokenizer: whose template lays them out.
        counts: are counted up. A pair goes to its ``rejects`` if the template refuses it, or makes the same of both
            answers. Pairs with one prompt are held out together: what decides is drawn by the prompt.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    require_template(tokenizer, counts)
    for pair in pairs:
        try:
            sides = [_encode(pair, answer, tokenizer) for answer in (pair.chosen, pair.rejected)]
        except UserError as error:
            counts.rejects.append(refused(pair, error))
            continue
        (chosen, _), (rejected, _) = sides
        if np.array_equal(chosen, rejected):
            counts.rejects.append(set_aside(pair, EQUAL, "the chat template makes the same of both"))
            continue
        counts.rows += 1
        counts.answers += 2
        counts.tokens += len(chosen) + len(rejected)
        counts.answer_tokens += sum(int(learned.sum()) for _, learned in sides)
        counts.draws.append(draw(json.dumps([pair.prompt, pair.tools], sort_keys=True).encode()))
        for (ids, learned), side in zip(sides, ("chosen", "rejected"), strict=True):
            said = num_bytes((*pair.prompt, *getattr(pair, side)))
            yield TokenisedDocument(ids, learned, f"{pair.id} {side}", pair.source, said)


def _encode(pair: Preference, answer: tuple[Message, ...], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    if pair.prefix is not None:
        return _encode_continuation(pair, answer[0]["content"], tokenizer)
    learned = [False] * len(pair.prompt) + [message["role"] == "assistant" for message in answer]
    return encode_learned((*pair.prompt, *answer), learned, pair.tools, tokenizer)


def _encode_continuation(pair: Preference, text: str, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The prompt, what is written of the answer, and how it goes on, which alone is learned; no end is written."""
    assert pair.prefix is not None, "of continuations"
    begun: list[Message] = [*pair.prompt]
    if pair.prefix:
        begun.append({"role": "assistant", "content": pair.prefix})
    before = tokenizer.encode_chat(begun, pair.tools or None, continue_final_message=bool(pair.prefix))
    after = tokenizer.encode(text)
    ids = np.array([*before, *after], np.int32)
    return ids, np.arange(len(ids)) >= len(before)
