"""A needle in a haystack: a sentence that names a number is hidden in a long text, and the model is asked for it.

The sentence is that of MiniMax-01 (arXiv 2501.08313, section 4.3): "The special magic {city} number is: {number}".
By default one haystack holds a needle at every depth, each of another city, and each question asks for one of them: all
prompts of a length share all but the question, so that a grid costs little more than one reading. With ``apart`` each
prompt holds one needle alone, as in the paper; then prompts share what stands before the shallower needle.
"""

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from leyden.core.errors import UserError
from leyden.evaluate.prompts import CHAT_TOKENS, ask, even_depths, some_of_grid
from leyden.evaluate.scores import by_axes, mean_with_interval
from leyden.evaluate.task import Answer, Options, Question, Row, Subject, TaskItem

_NAMES = """
Accra Amsterdam Ankara Athens Auckland Baku Bangkok Barcelona Beirut Belgrade Bergen Bogota Boston Brisbane
Brussels Bucharest Budapest Cairo Chennai Chicago Copenhagen Dakar Delhi Denver Dhaka Dublin Florence Geneva
Hamburg Hanoi Harare Havana Helsinki Istanbul Jakarta Kampala Kigali Krakow Lagos Leiden Lima Lisbon London
Lusaka Madrid Manila Melbourne Milan Montreal Nairobi Naples Osaka Oslo Paris Perth Porto Prague Quito Riga Rome
Santiago Seoul Seville Shanghai Sofia Stockholm Sydney Taipei Tallinn Tehran Tokyo Toronto Tunis Turin Vienna
Vilnius Warsaw Zagreb
"""
CITIES = tuple(_NAMES.split())
"""What the needles' numbers are named after."""
_LENGTHS = (1024, 2048, 4096)
_DEPTHS = 5
_DIGITS = 7
_ANSWER_TOKENS, _CHAT_ANSWER_TOKENS = 16, 64


@dataclass(frozen=True)
class _Needle:
    city: str
    number: str
    depth: float

    @property
    def sentence(self) -> str:
        return f"The special magic {self.city} number is: {self.number}"


class Niah:
    """The task ``niah``; see the module."""

    name = "niah"

    def __init__(self, options: Options, subject: Subject) -> None:
        self._options, self._subject = options, subject
        self._lengths = subject.lengths(options.lengths, _LENGTHS)
        self._samples = 1 if options.samples is None else options.samples
        count = _DEPTHS if options.depths is None else options.depths
        self._depths = even_depths(count)
        self._answer_tokens = _CHAT_ANSWER_TOKENS if options.chat else _ANSWER_TOKENS
        self._context = functools.lru_cache(maxsize=1)(self._make_context)

    def settings(self) -> Row:
        """Seed, text, and how needles and questions are put."""
        options = self._options
        depths = {} if options.apart else {"depths": len(self._depths)}  # the needles that share a prompt
        return {
            "seed": options.seed,
            "text": self._subject.haystack.source,
            "needles": "apart" if options.apart else "together",
            "chat": options.chat,
            **depths,
        }

    def items(self) -> list[TaskItem]:
        """One item for each length, sample and depth."""
        if len(self._depths) > len(CITIES):
            raise UserError(f"niah: {len(self._depths)} depths were asked for; at most {len(CITIES)} are possible.")
        items = []
        for length in self._lengths:
            for sample in range(self._samples):
                least = self._overhead(self._needles(length, sample)) + 1
                self._subject.check_length(self.name, length, least, "the needles and the question")
                # The deepest first: what the others share with it is then read.
                for index in reversed(range(len(self._depths))):
                    facts = {"length": length, "depth": self._depths[index], "sample": sample}
                    build = functools.partial(self._question, length, sample, index)
                    id = f"{length}-{self._depths[index]:g}-{sample}"
                    items.append(TaskItem(id, build, facts, f"{length}-{sample}", length))
        return some_of_grid(items, self._options.limit)

    def grade(self, item: TaskItem, question: Question, answer: Answer) -> Row:
        """1 where the first number of the answer is the needle's."""
        return {"score": float(first_number(answer.text) == question.expected[0])}

    def summary(self, rows: Sequence[Row]) -> Row:
        """The share of needles found, of all and by depth and length."""
        return {**mean_with_interval([row["score"] for row in rows]), "cells": by_axes(rows, ("depth", "length"))}

    def _needles(self, length: int, sample: int) -> list[_Needle]:
        """One for each depth, from the seed alone."""
        draws = random.Random(f"niah {self._options.seed} {length} {sample}")
        cities = draws.sample(CITIES, len(self._depths))
        numbers = [str(draws.randrange(10 ** (_DIGITS - 1), 10**_DIGITS)) for _ in cities]
        return [_Needle(*drawn) for drawn in zip(cities, numbers, self._depths, strict=True)]

    def _overhead(self, needles: Sequence[_Needle]) -> int:
        """Tokens of a prompt and its answer that are no haystack, by the longest of its questions and needles."""
        question = max(len(self._asked(needle)) for needle in needles)
        hidden = [len(self._hidden(needle)) for needle in needles]
        extra = CHAT_TOKENS if self._options.chat else 0
        return 1 + (max(hidden) if self._options.apart else sum(hidden)) + question + self._answer_tokens + extra

    def _hidden(self, needle: _Needle) -> list[int]:
        return self._subject.tokenizer.encode(f"\n{needle.sentence}.\n")

    def _asked(self, needle: _Needle) -> list[int]:
        question = f"\n\nWhat is the special magic {needle.city} number?"
        begun = "" if self._options.chat else f" The special magic {needle.city} number is:"
        return self._subject.tokenizer.encode(question + begun)

    def _make_context(self, length: int, sample: int, index: int) -> list[int]:
        """The tokens before the question, without the one that begins a document."""
        needles = self._needles(length, sample)
        inside = [needles[index]] if self._options.apart else needles
        count = length - self._overhead(needles)
        hay = self._subject.haystack.tokens(count, sample * length)
        tokens, done = [], 0
        for needle in inside:
            place = max(done, self._subject.haystack.line_end(hay, round(count * needle.depth / 100)))
            tokens += hay[done:place].tolist()
            tokens += self._hidden(needle)
            done = place
        return tokens + hay[done:].tolist()

    def _question(self, length: int, sample: int, index: int) -> Question:
        needle = self._needles(length, sample)[index]
        prompt = self._context(length, sample, index if self._options.apart else 0) + self._asked(needle)
        expected, chat = (needle.number,), self._options.chat
        return ask(self._subject.tokenizer, prompt, expected, max_tokens=self._answer_tokens, chat=chat)


def first_number(text: str) -> str | None:
    """The first whole number in a text, without the commas that group its digits; None where there is none."""
    match = re.search(r"\d[\d,]*", text)
    return None if match is None else match[0].replace(",", "")
