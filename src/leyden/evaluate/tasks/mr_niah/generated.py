"""Dialogues of MR-NIAH of any length, made for one tokenizer.

By default one dialogue has a pair of answers for every depth, each of another topic, so that all questions about it
share all but their last turn. With ``apart`` a dialogue has one pair, as the published ones have.
"""

import bisect
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from leyden.evaluate.pieces import Pieces
from leyden.evaluate.task import Options, Question, Subject
from leyden.evaluate.tasks.mr_niah.dialogue import Exchange, Pair, filler, make_pairs
from leyden.tokenizer import Tokenizer

_UNKNOWN_TURN_TOKENS = 16
"""What a chat template writes around a turn, where the template is not known."""
_SPARE_TOKENS = 2
"""An exchange in a chat may have so many more than the same words in a text, at the joints."""

Messages = Sequence[dict[str, str]]


def transcript(messages: Messages) -> str:
    """A dialogue as text, that ends where the assistant is to answer."""
    names = {"system": "System", "user": "User", "assistant": "Assistant"}
    turns = [f"{names[message['role']]}: {message['content']}\n\n" for message in messages]
    return "".join(turns) + "Assistant:"


@dataclass(frozen=True)
class _Placed:
    """Which answer is asked for again, at which depth, and where the other of its pair stands."""

    pair: Pair
    depth: float
    other_depth: float

    @property
    def which(self) -> str:
        return "first" if self.depth < self.other_depth else "second"

    @property
    def asked(self) -> Exchange:
        return self.pair.first if self.which == "first" else self.pair.second

    def exchanges(self) -> list[tuple[float, Exchange]]:
        """Both, with their depths, in order."""
        depths = sorted((self.depth, self.other_depth))
        return [(depths[0], self.pair.first), (depths[1], self.pair.second)]


class Dialogues:
    """Makes the questions of the task.

    Args:
        options: ``seed``, ``chat`` and ``apart`` count.
        subject: whose tokenizer counts.
        depths: in percent, ascending; one question each.
        answer_tokens: kept free for the answer.
    """

    def __init__(self, options: Options, subject: Subject, depths: Sequence[float], answer_tokens: int) -> None:
        self._options, self._tokenizer, self._depths = options, subject.tokenizer, depths
        self._answer_tokens = answer_tokens
        self._filler = Pieces(subject.tokenizer, filler(options.seed), _words)
        self._around_exchange, self._around_question = _around(subject.tokenizer) if options.chat else (0, 0)
        self._body = functools.lru_cache(maxsize=1)(self._make_body)

    def least(self, length: int, sample: int) -> int:
        """Tokens of the dialogue that has nothing but what is asked for, and of the answer."""
        placed = self._placed(length, sample)
        groups = [[one] for one in placed] if self._options.apart else [placed]
        return max(sum(self._cost(exchange) for _, exchange in _in_order(group)) for group in groups) + self._rest(
            placed
        )

    def question(self, length: int, sample: int, index: int) -> Question:
        """The question for the answer at the ``index``-th depth."""
        placed = self._placed(length, sample)
        asked, again = placed[index].asked, placed[index].pair.question(placed[index].which)
        exchanges, ids = self._body(length, sample, index if self._options.apart else None)
        if self._options.chat:
            messages = [message for exchange in exchanges for message in _messages(exchange)]
            return Question([*messages, {"role": "user", "content": again}], asked.lines, self._answer_tokens)
        return Question([*ids, *self._final(again)], asked.lines, self._answer_tokens)

    def _placed(self, length: int, sample: int) -> list[_Placed]:
        depths = self._depths
        others = [depths[1], *depths[:-1]] if len(depths) > 1 else [depths[0] / 2]
        draws = random.Random(f"mr_niah {self._options.seed} {length} {sample}")
        return [_Placed(*place) for place in zip(make_pairs(draws, len(depths)), depths, others, strict=True)]

    def _rest(self, placed: Sequence[_Placed]) -> int:
        """Tokens that are no exchange, by the longest question."""
        final = max(len(self._final(one.pair.question(one.which))) for one in placed)
        return 1 + final + self._around_question + self._answer_tokens

    def _make_body(self, length: int, sample: int, index: int | None) -> tuple[list[Exchange], list[int]]:
        """The exchanges before the question, and their tokens with the one that begins a document (unless a chat)."""
        placed = self._placed(length, sample)
        inside = _in_order(placed if index is None else [placed[index]])
        room = length - self._rest(placed) - sum(self._cost(exchange) for _, exchange in inside)
        between = self._filler.fitting(room, sample * length, self._around_exchange)
        ends = list(accumulate(len(self._filler.tokens[at]) for at in between))
        places = [bisect.bisect_right(ends, depth / 100 * ends[-1]) if ends else 0 for depth, _ in inside]
        exchanges: list[Exchange] = []
        pieces: list[np.ndarray] = []
        done = 0
        for place, (_, exchange) in zip([*places, len(between)], [*inside, (100.0, None)], strict=True):
            part = slice(between.start + done, between.start + place)
            exchanges += self._filler.items[part]
            pieces += self._filler.tokens[part]
            if exchange is not None:
                exchanges.append(exchange)
                pieces.append(self._tokenizer.encode_batch([_words(exchange)])[0])
            done = place
        if self._options.chat:
            return exchanges, []
        return exchanges, [self._tokenizer.bos_id, *np.concatenate(pieces).tolist()]

    def _cost(self, exchange: Exchange) -> int:
        return len(self._tokenizer.encode(_words(exchange))) + self._around_exchange

    def _final(self, question: str) -> list[int]:
        return self._tokenizer.encode(transcript([{"role": "user", "content": question}]))


def _in_order(placed: Sequence[_Placed]) -> list[tuple[float, Exchange]]:
    """What is hidden, by depth; the first answer of a pair before the second."""
    return sorted((each for one in placed for each in one.exchanges()), key=lambda each: each[0])


def _messages(exchange: Exchange) -> list[dict[str, str]]:
    return [{"role": "user", "content": exchange.request}, {"role": "assistant", "content": exchange.answer}]


def _words(exchange: Exchange) -> str:
    return transcript(_messages(exchange)).removesuffix("Assistant:")


def _around(tokenizer: Tokenizer) -> tuple[int, int]:
    """How many more tokens than the text an exchange and the last turn of a chat have."""
    if tokenizer.chat_template is None:
        return 2 * _UNKNOWN_TURN_TOKENS, _UNKNOWN_TURN_TOKENS
    sample = Exchange("Write.", "Written.", ())
    last = {"role": "user", "content": "Repeat."}
    alone = len(tokenizer.encode_chat([last]))
    exchange = len(tokenizer.encode_chat([*_messages(sample), last])) - alone - len(tokenizer.encode(_words(sample)))
    question = alone - len(tokenizer.encode(transcript([last])))
    return max(0, exchange + _SPARE_TOKENS), max(0, question + _SPARE_TOKENS)
