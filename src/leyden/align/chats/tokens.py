"""Chats to tokens, with a mask: what the assistant is to say carries loss, and nothing else.

A chat is as many tokens as its template makes of it, up to the end of its last answer that is to be learned; nothing is
put before or behind. It is written whole: what does not fit into a sequence is settled where batches are made.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from leyden.align.chats.chat import Chat, Message, Preference
from leyden.core.errors import UserError
from leyden.data.documents import Reject
from leyden.data.hold_out_rule import border, draw
from leyden.data.tokenise import TokenisedDocument
from leyden.tokenizer import Tokenizer

REFUSED = "refused by the chat template"
"""The reason to set a chat aside that cannot be rendered, or whose answers cannot be told apart."""


@dataclass
class RowCounts:
    """What was read of rows of one kind, counted while it is.

    Attributes:
        noun: what they are, in the plural.
        rows: how many, of those that are trained on or held out.
        answers: how many of theirs are to be learned.
        tokens, answer_tokens: of them.
        draws: of each row, the number in [0, 1) that decides whether it is held out.
        rejects: what was set aside.
    """

    noun: ClassVar[str]

    rows: int = 0
    answers: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    draws: list[float] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def reasons(self) -> dict[str, int]:
        """How many were set aside for each reason."""
        counts = Counter[str]()
        for reject in self.rejects:
            counts[reject.reason] += reject.count
        return dict(counts.most_common())

    def set_aside(self) -> str:
        """The same in words."""
        return "set aside: " + (", ".join(f"{count:,} {reason}" for reason, count in self.reasons().items()) or "none")


class ChatCounts(RowCounts):
    """Of chats."""

    noun = "chats"

    def __str__(self) -> str:
        return (
            f"{self.rows:,} with {self.answers:,} answers to learn, {self.tokens:,} tokens, of them "
            f"{self.answer_tokens:,} learned; {self.set_aside()}"
        )


def tokenise_chats(chats: Iterable[Chat], tokenizer: Tokenizer, counts: ChatCounts) -> Iterator[TokenisedDocument]:
    """Each chat as tokens.

    Args:
        chats: as :func:`~leyden.align.chats.read.read_chats` gives them.
        tokenizer: whose template lays them out.
        counts: are counted up; a chat that the template refuses goes to its ``rejects``.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    require_template(tokenizer, counts)
    for chat in chats:
        try:
            ids, learned = encode_learned(chat.messages, chat.learned, chat.tools, tokenizer)
        except UserError as error:
            counts.rejects.append(refused(chat, error))
            continue
        counts.rows += 1
        counts.answers += sum(chat.learned)
        counts.tokens += len(ids)
        counts.answer_tokens += int(learned.sum())
        counts.draws.append(draw(json.dumps([chat.messages, chat.tools], sort_keys=True).encode()))
        yield TokenisedDocument(ids, learned, chat.id, chat.source, num_bytes(chat.messages))


def require_template(tokenizer: Tokenizer, counts: RowCounts) -> None:
    """Refuse a tokenizer that cannot lay out chats.

    Raises:
        UserError: it has no chat template.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            f"{counts.noun.capitalize()} need a chat template, and the run's tokenizer has none; add a "
            "chat_template.jinja to its directory."
        )


def encode_learned(
    messages: Sequence[Message], learned: Sequence[bool], tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a chat up to the end of its last answer that is to be learned, and which of them are: [T] each.

    Raises:
        UserError: the template refuses the chat, or leaves undecided where an answer begins or ends.
    """
    ids, writers = tokenizer.encode_answers(messages, tools or None)
    mask = np.isin(writers, np.flatnonzero(learned))
    end = int(np.flatnonzero(mask)[-1]) + 1
    return ids[:end], mask[:end]


def num_bytes(messages: Sequence[Message]) -> int:
    """UTF-8 bytes of what is said in a chat."""
    return sum(len((message["content"] or "").encode()) for message in messages)


def refused(row: Chat | Preference, error: UserError) -> Reject:
    """What is set aside because of its template."""
    return set_aside(row, REFUSED, str(error))


def set_aside(row: Chat | Preference, reason: str, detail: str) -> Reject:
    """A row that is left out once it was read."""
    return Reject(row.source, f"row {row.id.rpartition(':')[2]}", reason, detail[:400])


def held_out(draws: np.ndarray, share: float) -> np.ndarray:
    """[D] bool, which rows are held out: by the numbers of their contents, as documents are; none where all are one."""
    smallest, largest = float(draws.min()), float(draws.max())
    return draws < (border(share, smallest, largest) if smallest < largest else 0.0)
