"""RULER: thirteen synthetic tasks of retrieval, tracking, counting and questions at any length.

The tasks, their settings and their scoring are those of Hsieh et al. (arXiv 2404.06654) and of the authors' program
(github.com/NVIDIA/RULER, Apache-2.0). The prompts have words of our own, and what the program downloads is replaced:
essays by the haystack, its lists of words by one of our own, and SQuAD and HotpotQA by a file of either that the user
names, or by a made-up world.
"""

import functools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leyden.core.errors import UserError, suggest
from leyden.evaluate.prompts import CHAT_TOKENS, ask, some_of_grid
from leyden.evaluate.scores import by_axes, mean_with_interval
from leyden.evaluate.task import Answer, Options, Question, Row, Subject, TaskItem
from leyden.evaluate.tasks.ruler.documents import draft_from_file, draft_generated, read_qa
from leyden.evaluate.tasks.ruler.draft import Draft, Materials, Sample
from leyden.evaluate.tasks.ruler.frequency import draft_common_words, draft_frequent_words
from leyden.evaluate.tasks.ruler.needles import draft_needles
from leyden.evaluate.tasks.ruler.tracking import draft_tracking

_LENGTHS = (4096,)
_SAMPLES = 5
_TOGETHER = 16
"""Samples whose prompts are built and asked together."""

_Drafter = Callable[[Materials, Sample], Draft]


@dataclass(frozen=True)
class _Subtask:
    """One of the thirteen.

    Attributes:
        draft: makes a prompt of the materials.
        answer_tokens: that the authors allow.
        any_answer: whether one of the expected texts is enough (``string_match_part``); otherwise the share of them
            counts (``string_match_all``).
    """

    draft: _Drafter
    answer_tokens: int
    any_answer: bool = False


def _needles(**settings: object) -> _Subtask:
    return _Subtask(functools.partial(draft_needles, **settings), 128)  # pyright: ignore[reportArgumentType]


SUBTASKS: dict[str, _Subtask] = {
    "niah_single_1": _needles(hay="noise"),
    "niah_single_2": _needles(hay="essay"),
    "niah_single_3": _needles(hay="essay", values="uuids"),
    "niah_multikey_1": _needles(hay="essay", num_keys=4),
    "niah_multikey_2": _needles(hay="needle"),
    "niah_multikey_3": _needles(hay="needle", keys="uuids", values="uuids"),
    "niah_multivalue": _needles(hay="essay", num_values=4),
    "niah_multiquery": _needles(hay="essay", num_keys=4, num_queries=4),
    "vt": _Subtask(draft_tracking, 30),
    "cwe": _Subtask(draft_common_words, 120),
    "fwe": _Subtask(draft_frequent_words, 50),
    "qa_1": _Subtask(functools.partial(draft_generated, hops=1), 32, any_answer=True),
    "qa_2": _Subtask(functools.partial(draft_generated, hops=2), 32, any_answer=True),
}
"""With the authors' settings."""


class Ruler:
    """The task ``ruler``; see the module.

    Raises:
        UserError: a subtask that there is not, or a file that cannot be used.
    """

    name = "ruler"

    def __init__(self, options: Options, subject: Subject) -> None:
        self._options, self._subject = options, subject
        self._samples = _SAMPLES if options.samples is None else options.samples
        self._materials = Materials(subject.tokenizer, subject.haystack, options.seed)
        self._subtasks = dict(SUBTASKS)
        self._file_digest: str | None = None
        if options.file is not None:
            file = read_qa(options.file, options.seed)
            draft = functools.partial(draft_from_file, file=file)
            self._subtasks[file.kind] = _Subtask(draft, SUBTASKS[file.kind].answer_tokens, any_answer=True)
            self._file_digest = file.digest
        self._chosen = options.subtasks or tuple(SUBTASKS)
        for name in self._chosen:
            if name not in SUBTASKS:
                raise UserError(f"ruler: subtask '{name}' is unknown{suggest(name, SUBTASKS)}")

    def settings(self) -> Row:
        """Seed, texts, and how questions are put."""
        file = {} if self._file_digest is None else {"file": self._file_digest}
        return {"seed": self._options.seed, "text": self._subject.haystack.source, "chat": self._options.chat, **file}

    def items(self) -> list[TaskItem]:
        """One item for each subtask, length and sample."""
        items = []
        for name in self._chosen:
            for length in self._subject.lengths(self._options.lengths, _LENGTHS):
                for first in range(0, self._samples, _TOGETHER):
                    samples = range(first, min(first + _TOGETHER, self._samples))
                    items += self._together(name, length, samples)
        return some_of_grid(items, self._options.limit)

    def grade(self, item: TaskItem, question: Question, answer: Answer) -> Row:
        """The share of the expected texts that the answer holds, or whether it holds any, in any case of letters."""
        return {"score": matched(answer.text, question.expected, any_is_enough=self._subtask(item).any_answer)}

    def summary(self, rows: Sequence[Row]) -> Row:
        """The mean score, of all and by subtask and length."""
        return {**mean_with_interval([row["score"] for row in rows]), "cells": by_axes(rows, ("subtask", "length"))}

    def _together(self, name: str, length: int, samples: Sequence[int]) -> list[TaskItem]:
        """Items that are asked together, those first that share most with the others."""
        found = []
        for sample in samples:
            draft = self._draft(name, length, sample)
            least = self._around(name, draft) + draft.least_tokens
            self._subject.check_length(f"ruler {name}", length, least, "what is hidden, the question and the answer")
            facts = {"subtask": name, "length": length, "sample": sample}
            build = functools.partial(self._question, name, length, sample)
            item = TaskItem(f"{name}-{length}-{sample}", build, facts, f"{name}-{length}-{samples[0]}", length)
            found.append((draft.depth, item))
        return [item for _, item in sorted(found, key=lambda each: -each[0])]

    def _subtask(self, item: TaskItem) -> _Subtask:
        return self._subtasks[item.facts["subtask"]]

    def _draft(self, name: str, length: int, sample: int) -> Draft:
        draws = random.Random(f"ruler {self._options.seed} {name} {length} {sample}")
        return self._subtasks[name].draft(self._materials, Sample(sample, length, draws))

    def _around(self, name: str, draft: Draft) -> int:
        """Tokens of a prompt and its answer that are no context."""
        frame = sum(map(len, self._materials.encode(draft.head, draft.tail + draft.begun)))
        return 1 + frame + self._subtasks[name].answer_tokens + (CHAT_TOKENS if self._options.chat else 0)

    def _question(self, name: str, length: int, sample: int) -> Question:
        draft, chat = self._draft(name, length, sample), self._options.chat
        context, expected = draft.fill(length - self._around(name, draft))
        head, tail = self._materials.encode(draft.head, draft.tail + ("" if chat else draft.begun))
        prompt = [*head.tolist(), *context.tolist(), *tail.tolist()]
        max_tokens = self._subtasks[name].answer_tokens
        return ask(self._subject.tokenizer, prompt, expected, max_tokens=max_tokens, chat=chat)


def matched(answer: str, expected: Sequence[str], *, any_is_enough: bool) -> float:
    """The authors' ``string_match_part`` where ``any_is_enough``, otherwise their ``string_match_all``."""
    text = re.sub(r"[\x00-\x1f]", "\n", answer.strip()).lower()
    found = [part.lower() in text for part in expected]
    return float(any(found)) if any_is_enough else sum(found) / len(found)
