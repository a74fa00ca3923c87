"""The stage ``recall``: numbers are planted in documents and asked for later on in them.

A model of a few million parameters reads too little text to learn from it alone that what stood far back can be looked
up. Documents of this stage hold that lesson at every distance: a line names a number, and a later line asks for it and
answers. The sentence is the one that MiniMax-01 measures retrieval with (arXiv 2501.08313, section 4.3). Names and
numbers are drawn, so that no answer can be known by heart.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from leyden.data.documents import Document, Documents, Message
from leyden.data.hold_out_rule import draw
from leyden.data.stage import Stage

PLANTED = "planted"
"""The score that counts the questions of a document."""

_WORD = re.compile(r"[A-Za-z]{4,12}")
_NEAREST_BYTES = 64
"""Behind a fact, where the nearest question may stand."""
_MOST_FACTS = 12
_MOST_BYTES = 4096
_LEAST_GAP = 4
"""Of a piece with answers alone to learn: its facts, its text, and the text for each fact, from so many bytes on."""
_FALLBACK_NAMES = ("Alpha", "Bravo", "Delta", "Foxtrot", "Sierra", "Tango", "Victor", "Whiskey")


class Recall(Stage):
    """Plant lines that name a number in documents, and lines that ask for it and answer.

    A planted line is "The special magic NAME number is: NUMBER.", and a question repeats it behind "What is the special
    magic NAME number?". Names are words of the document. The question after a fact is as often 1,000 bytes away as
    10,000 (the logarithm of the distance is uniform), as far as the document reaches. Which documents are chosen, and
    all that is drawn, depends on the content of each document alone. Dialogues are left alone.

    With ``learn = "answers"`` a document is taken apart: each piece of at most 4,096 bytes hides 2 to 12 facts, asks
    for all of them at its end in another order, and of it the numbers that answer are learned alone.
    """

    kind: Literal["recall"] = "recall"

    share: float = Field(default=0.1, gt=0, le=1)
    """Of the documents, how many are chosen, by a hash of their text."""
    every_bytes: int = Field(default=400, ge=64)
    """The mean distance of two planted facts."""
    least_bytes: int = Field(default=1000, ge=1)
    """Shorter documents are left alone."""
    learn: Literal["all", "answers"] = "all"
    """Of what is made, what carries loss: ``all``, or ``answers``, the numbers that answer, in pieces of the document;
    a build's ``[tokens] layout`` says ``learn = "answers"`` and ``style = "joined"`` for them."""
    digits: int = Field(default=7, ge=1, le=18)
    """Of each number."""
    mode: Literal["add", "replace"] = "replace"
    """Whether an original stays beside what was made of it (``ID#recall``), or gives its place to it."""
    source: str = ""
    """The source of the documents that are made, by which a mixture weighs them; empty: that of the original."""

    @model_validator(mode="after")
    def _pieces_stand_beside(self) -> Self:
        if self.learn == "answers" and self.mode == "replace":
            raise ValueError(
                'learn = "answers" makes several pieces of a document, which stay beside it; give mode = "add"'
            )
        return self

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Rewrite the chosen documents, or add theirs behind them."""
        texts = documents.column("text")
        chosen = np.array([text is not None and self._chooses(text) for text in texts], bool)
        if not chosen.any():
            return documents
        if self.learn == "answers":
            originals = documents.where(chosen.tolist())
            made = list(self._pieces_of(originals))
            asked = [len(document.messages) // 2 for document in made]
            return Documents(pa.concat_tables([documents.table, Documents.of(made).score(PLANTED, asked).table]))
        made = [self.plant(text) if use else (text, 0) for use, text in zip(chosen, texts, strict=True)]
        planted = documents.with_column("text", [text for text, _ in made])
        planted = planted.score(PLANTED, [count or None for _, count in made])
        if self.source:
            sources = zip(chosen, documents.column("source"), strict=True)
            planted = planted.with_column("source", [self.source if use else old for use, old in sources])
        if self.mode == "replace":
            return planted
        added = planted.where(chosen.tolist())
        added = added.with_column("id", [f"{id}#recall" for id in added.column("id")])
        return Documents(pa.concat_tables([documents.table, added.table]))

    def plant(self, text: str) -> tuple[str, int]:
        """The text with facts and questions, and how many questions there are."""
        draws = random.Random(draw(text.encode()))
        lines = text.splitlines(keepends=True)
        if not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        ends = np.cumsum([len(line.encode()) for line in lines])
        planted = list(self._planted(draws, _names(text), int(ends[-1])))
        places = np.searchsorted(ends, [place for place, _ in planted])
        behind: dict[int, list[str]] = {}
        for line, (_, sentence) in zip(places.tolist(), planted, strict=True):
            behind.setdefault(min(line, len(lines) - 1), []).append(sentence)
        whole = "".join(line + "".join(behind.get(number, ())) for number, line in enumerate(lines))
        return whole, len(planted) // 2

    def pieces(self, text: str) -> Iterator[tuple[Message, ...]]:
        """The text in pieces with facts, each then asked for. What is learned, the assistant says."""
        draws, names, begin = random.Random(draw(b"pieces" + text.encode())), _names(text), 0
        while begin < len(text):
            count = min(_log_uniform(draws, 2, _MOST_FACTS), len(names))
            gap = _log_uniform(draws, _LEAST_GAP, max(self.every_bytes, _LEAST_GAP))
            piece = text[begin : begin + min(count * gap, _MOST_BYTES)]
            begin += len(piece)
            numbers = {name: f" {self._number(draws)}." for name in draws.sample(names, count)}
            places = sorted(draws.randrange(len(piece) + 1) for _ in numbers)
            whole, done = "", 0
            for (name, number), place in zip(numbers.items(), places, strict=True):
                whole += f"{piece[done:place]}\nThe special magic {name} number is:{number}\n"
                done = place
            whole += piece[done:]
            messages = []
            for name in draws.sample(sorted(numbers), count):
                whole += f"\n\nWhat is the special magic {name} number? The special magic {name} number is:"
                messages += [Message("user", whole), Message("assistant", numbers[name])]
                whole = ""
            yield tuple(messages)

    def _pieces_of(self, documents: Documents) -> Iterator[Document]:
        for id, text, source in zip(*(documents.column(name) for name in ("id", "text", "source")), strict=True):
            for number, messages in enumerate(self.pieces(text), 1):
                yield Document(f"{id}#recall-{number}", "", self.source or source, messages=messages)

    def _number(self, draws: random.Random) -> int:
        return draws.randrange(10 ** (self.digits - 1), 10**self.digits)

    def _chooses(self, text: str) -> bool:
        # Another number of the text than the one that decides what is held out, of which only one end is left.
        return len(text.encode()) >= self.least_bytes and draw(b"recall" + text.encode()) < self.share

    def _planted(self, draws: random.Random, names: list[str], size: int) -> Iterator[tuple[int, str]]:
        """Facts and their questions, each with the place behind which it stands, in order of places.

        Every fact has a name of its own, so that no question has two answers.
        """
        count = min(max(1, size // self.every_bytes), len(names))
        planted = []
        for name in draws.sample(names, count):
            fact = f"The special magic {name} number is: {self._number(draws)}."
            place = draws.randrange(size)
            nearest, farthest = min(_NEAREST_BYTES, size - place), size - place
            asked = place + round(nearest * (farthest / nearest) ** draws.random())
            planted += [(place, f"\n{fact}\n"), (asked, f"\nWhat is the special magic {name} number? {fact}\n")]
        yield from sorted(planted, key=lambda one: one[0])


def _log_uniform(draws: random.Random, least: int, most: int) -> int:
    return round(least * (most / least) ** draws.random())


def _names(text: str) -> list[str]:
    """What numbers are named after: the distinct words of the text, capitalised."""
    return sorted({word.capitalize() for word in _WORD.findall(text)}) or list(_FALLBACK_NAMES)
