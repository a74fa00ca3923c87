"""Chats to tokens, with a mask: what the assistant is to say carries loss, and nothing else.

A chat is as many tokens as its template makes of it, up to the end of its last answer that is to be learned; nothing is
put before or behind. It is written whole: what does not fit into a sequence is settled where batches are made.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from leyden.align.chats.chat import Chat
from leyden.core.errors import UserError
from leyden.data.documents import Reject
from leyden.data.hold_out_rule import border, draw
from leyden.data.tokenise import TokenisedDocument
from leyden.tokenizer import Tokenizer

REFUSED = "refused by the chat template"
"""The reason to set a chat aside that cannot be rendered, or whose answers cannot be told apart."""


@dataclass
class ChatCounts:
    """What was read, counted while it is.

    Attributes:
        chats, answers: how many, of those that are trained on or held out.
        tokens, answer_tokens: of them.
        draws: of each chat, the number in [0, 1) that decides whether it is held out.
        rejects: what was set aside.
    """

    chats: int = 0
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

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons().items())
        return (
            f"{self.chats:,} with {self.answers:,} answers to learn, {self.tokens:,} tokens, of them "
            f"{self.answer_tokens:,} learned; set aside: {reasons or 'none'}"
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
    if tokenizer.chat_template is None:
        raise UserError(
            "Chats need a chat template, and the run's tokenizer has none; add a chat_template.jinja to its directory."
        )
    for chat in chats:
        try:
            ids, writers = tokenizer.encode_answers(chat.messages, chat.tools or None)
        except UserError as error:
            counts.rejects.append(Reject(chat.source, f"row {_row(chat)}", REFUSED, str(error)[:400]))
            continue
        learned = np.isin(writers, np.flatnonzero(chat.learned))
        end = int(np.flatnonzero(learned)[-1]) + 1
        counts.chats += 1
        counts.answers += sum(chat.learned)
        counts.tokens += end
        counts.answer_tokens += int(learned.sum())
        counts.draws.append(draw(json.dumps([chat.messages, chat.tools], sort_keys=True).encode()))
        said = sum(len((message["content"] or "").encode()) for message in chat.messages)
        yield TokenisedDocument(ids[:end], learned[:end], chat.id, chat.source, said)


def held_out(draws: np.ndarray, share: float) -> np.ndarray:
    """[D] bool, which chats are held out: by the numbers of their contents, as documents are; none of one chat."""
    smallest, largest = float(draws.min()), float(draws.max())
    return draws < (border(share, smallest, largest) if smallest < largest else 0.0)


def _row(chat: Chat) -> str:
    return chat.id.rpartition(":")[2]
