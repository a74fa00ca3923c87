"""MR-NIAH: in a long dialogue, a user asks for one of two earlier answers to the same request again.

The task is that of MiniMax-01 (arXiv 2501.08313). With ``file`` it asks the published rows; otherwise it
generates dialogues of any length, as the published files above 10,240 tokens are cut short. Both are scored by the
published rule; see :mod:`leyden.evaluate.tasks.mr_niah.scoring`.
"""

import functools
from collections.abc import Sequence

from leyden.core.errors import UserError
from leyden.evaluate.prompts import even_depths, evenly, some_of_grid
from leyden.evaluate.scores import by_axes, mean_with_interval
from leyden.evaluate.task import Answer, Options, Question, Row, Subject, TaskItem
from leyden.evaluate.tasks.mr_niah.dialogue import max_pairs
from leyden.evaluate.tasks.mr_niah.generated import Dialogues, transcript
from leyden.evaluate.tasks.mr_niah.rows import Dialogue, PublishedDialogues
from leyden.evaluate.tasks.mr_niah.scoring import components, language, score

_LENGTHS = (2048, 4096)
_DEPTHS = (25.0, 50.0, 75.0)
_ANSWER_TOKENS = 256
_NEXT_TURN = "\nUser:"
"""Where a model that goes on from a text has begun to write the user's next turn."""


class MrNiah:
    """The task ``mr_niah``; see the module."""

    name = "mr_niah"

    def __init__(self, options: Options, subject: Subject) -> None:
        self._options, self._subject = options, subject
        self._published = None if options.file is None else PublishedDialogues(options.file)
        self._depths = _DEPTHS if options.depths is None else even_depths(options.depths)
        self._samples = 1 if options.samples is None else options.samples
        self._dialogues = Dialogues(options, subject, self._depths, _ANSWER_TOKENS)

    def settings(self) -> Row:
        """The rows, or the seed and how dialogues are made."""
        options = self._options
        if self._published is not None:
            return {"file": self._published.digest, "chat": options.chat}
        depths = {} if options.apart else {"depths": list(self._depths)}  # their pairs share a dialogue
        return {"seed": options.seed, "pairs": "apart" if options.apart else "together", "chat": options.chat, **depths}

    def items(self) -> list[TaskItem]:
        """One item a published row, or for each length, sample and depth."""
        if self._published is None:
            return some_of_grid(self._generated(), self._options.limit)
        return self._rows(self._published)

    def grade(self, item: TaskItem, question: Question, answer: Answer) -> Row:
        """The share of the components that the answer holds, by the published rule."""
        text = answer.text if question.is_chat else answer.text.partition(_NEXT_TURN)[0]
        return {"score": score(text, question.expected, item.facts.get("language", "english"))}

    def summary(self, rows: Sequence[Row]) -> Row:
        """The mean score, of all and by depth and length."""
        missing = {} if self._published is None else {"missing_rows": self._published.missing}
        cells = by_axes(rows, ("depth", "length"))
        return {**mean_with_interval([row["score"] for row in rows]), "cells": cells, **missing}

    def _generated(self) -> list[TaskItem]:
        if len(self._depths) > max_pairs():
            raise UserError(f"mr_niah: {len(self._depths)} depths were asked for; at most {max_pairs()} are possible.")
        items = []
        for length in self._subject.lengths(self._options.lengths, _LENGTHS):
            for sample in range(self._samples):
                least = self._dialogues.least(length, sample)
                self._subject.check_length(self.name, length, least, "what is asked for, the question and the answer")
                # The deepest first: what the others share with it is then read.
                for index in reversed(range(len(self._depths))):
                    facts = {"length": length, "depth": self._depths[index], "sample": sample}
                    build = functools.partial(self._dialogues.question, length, sample, index)
                    id = f"{length}-{self._depths[index]:g}-{sample}"
                    items.append(TaskItem(id, build, facts, f"{length}-{sample}", length))
        return items

    def _rows(self, published: PublishedDialogues) -> list[TaskItem]:
        rows, tokenizer = published.of_lengths(self._options.lengths), self._subject.tokenizer
        items = []
        for row in evenly(rows, self._options.limit, lambda row: (row.length_class, row.depth)):
            tokens = len(tokenizer.encode(transcript(row.messages))) + 1
            answer_tokens = max(_ANSWER_TOKENS, 2 * len(tokenizer.encode(row.label)))
            if self._subject.positions is not None and tokens + answer_tokens > self._subject.positions:
                raise UserError(
                    f"mr_niah: {row.where} has {tokens} tokens and its answer up to {answer_tokens}, and "
                    f"{self._subject.name} has {self._subject.positions} positions (max_position_embeddings); name the "
                    "length classes that fit with --lengths, or give a model for longer contexts."
                )
            facts = {"length": row.length_class, "depth": row.depth, "language": language(row.label)}
            build = functools.partial(self._ask_row, row, answer_tokens)
            items.append(TaskItem(row.id, build, facts, cost=tokens))
        return items

    def _ask_row(self, row: Dialogue, answer_tokens: int) -> Question:
        expected = components(row.label)
        if self._options.chat:
            return Question(row.messages, expected, answer_tokens)
        ids = self._subject.tokenizer.encode(transcript(row.messages), bos=True)
        return Question(ids, expected, answer_tokens)
