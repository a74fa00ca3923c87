"""LongBench v2: questions with four choices about long documents (arXiv 2412.15204).

The rows are published (https://huggingface.co/datasets/THUDM/LongBench-v2). Truncation and the rule by which an
answer is read are those of the authors' program (github.com/THUDM/LongBench, MIT); prompts have words of our own, and
the temperature is 0, where theirs is 0.1. With ``think`` the model first reasons step by step,
and a second question, without the document, asks for its choice.
"""

import functools
import hashlib
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

from leyden.core.errors import UserError
from leyden.evaluate.prompts import CHAT_TOKENS, ask, evenly
from leyden.evaluate.published import PublishedRow, parse_rows, read_published
from leyden.evaluate.scores import mean_with_interval
from leyden.evaluate.task import Answer, Options, Question, Row, Subject, TaskItem

_LETTERS = ("A", "B", "C", "D")
_DIFFICULTIES = ("easy", "hard")
_LENGTHS = ("short", "medium", "long")
_ANSWER_TOKENS, _THOUGHT_TOKENS = 128, 1024
_UNKNOWN_POSITIONS = 120_000
"""Tokens of a prompt where nobody says how many positions the model has: what the authors allow most models."""
_BYTES_PER_TOKEN = 4
"""About, by which the time left is told before a text is tokenised."""

_ASKED = """Here is a text. Read it, and answer the {questions} behind it.

{document}

Question: {question}
Which of these answers is correct?
(A) {A}
(B) {B}
(C) {C}
(D) {D}
"""
_ANSWER_SO = 'Answer in this form: "The correct answer is (LETTER)".'
_THINK = "First reason step by step:"
_BEGUN = "\n\nThe correct answer is ("


@dataclass(frozen=True)
class _Case:
    """A row, checked."""

    id: str
    facts: Row
    document: str
    question: str
    choices: dict[str, str]
    answer: str

    def asked(self, document: str, questions: str) -> str:
        """The prompt up to what the answer should look like."""
        # Not str.format on the whole: a document may have braces, which format leaves alone only in values.
        return _ASKED.format(document=document, questions=questions, question=self.question, **self.choices)


class LongBenchV2:
    """The task ``longbench_v2``; see the module.

    Raises:
        UserError: no file was named, it has broken rows, or a length that does not fit.
    """

    name = "longbench_v2"

    def __init__(self, options: Options, subject: Subject) -> None:
        if options.file is None:
            raise UserError(
                "longbench_v2 asks published rows; name their file with --file (data.json of "
                "https://huggingface.co/datasets/THUDM/LongBench-v2)."
            )
        if options.lengths is not None and len(options.lengths) != 1:
            raise UserError(
                f"longbench_v2 reads each document once, up to one length; --lengths names {len(options.lengths)}."
            )
        self._options, self._subject = options, subject
        self._answer_tokens = _THOUGHT_TOKENS if options.think else _ANSWER_TOKENS
        self._length = self._context_tokens()
        rows, cut_short = read_published(options.file)
        if cut_short or not rows:
            state = "is cut short within a row" if cut_short else "has no rows"
            raise UserError(f"--file: {options.file} {state}; fetch it again.")
        self._cases = _distinct(rows, parse_rows(rows, _checked))
        self._digest = hashlib.blake2b(options.file.read_bytes(), digest_size=8).hexdigest()
        self._whole_tokens: dict[str, int] = {}

    def settings(self) -> Row:
        """The rows, how long a prompt may be, and how it is put."""
        options = self._options
        return {"file": self._digest, "context_tokens": self._length, "cot": options.think, "chat": options.chat}

    def items(self) -> list[TaskItem]:
        """One item a row, in the file's order."""
        items = []
        cells = operator.itemgetter("difficulty", "length")
        for case in evenly(self._cases, self._options.limit, lambda case: cells(case.facts)):
            build = functools.partial(self._first, case)
            cost = min(self._length, len(case.document) // _BYTES_PER_TOKEN + self._answer_tokens)
            then = functools.partial(self._second, case) if self._options.think else None
            items.append(TaskItem(case.id, build, case.facts, cost=cost, then=then))
        return items

    def grade(self, item: TaskItem, question: Question, answer: Answer) -> Row:
        """1 where the choice that the answer names is right; an answer that names none is wrong."""
        begun = "" if self._options.chat else _BEGUN
        choice = chosen(begun + answer.text)
        whole = self._whole_tokens[item.id]
        return {
            "score": float(choice == question.expected[0]),
            "choice": choice,
            "whole_tokens": whole,
            "truncated": whole > self._room(),
        }

    def summary(self, rows: Sequence[Row]) -> Row:
        """The share of right choices: of all, of each difficulty and of each class of length."""
        cells = []
        for fact, parts in (("difficulty", _DIFFICULTIES), ("length", _LENGTHS)):
            for part in parts:
                scores = [row["score"] for row in rows if row[fact] == part]
                cells += [{"part": part, **mean_with_interval(scores)}] if scores else []
        return {
            **mean_with_interval([row["score"] for row in rows]),
            "cells": cells,
            "truncated": sum(row["truncated"] for row in rows),
            "without_choice": sum(row["choice"] is None for row in rows),
        }

    def _context_tokens(self) -> int:
        """Tokens of a prompt and its answer: as asked for, or as many as the model has."""
        default = self._subject.positions or _UNKNOWN_POSITIONS + self._answer_tokens
        length = default if self._options.lengths is None else self._options.lengths[0]
        frame = len(self._subject.tokenizer.encode(_ASKED + _ANSWER_SO + _BEGUN))
        least = frame + self._answer_tokens + CHAT_TOKENS + 1
        self._subject.check_length(self.name, length, least, "the frame of a question and its answer")
        return length

    def _room(self) -> int:
        """Tokens that the prompt may have, beside what is put around it."""
        around = CHAT_TOKENS if self._options.chat else 1 + len(self._subject.tokenizer.encode(_BEGUN))
        return self._length - around - self._answer_tokens

    def _first(self, case: _Case) -> Question:
        document = f"<text>\n{case.document}\n</text>"
        if self._options.think:
            prompt = case.asked(document, "questions") + "\n" + _THINK
        else:
            prompt = case.asked(document, "question") + "\n" + _ANSWER_SO
        ids = self._subject.tokenizer.encode(prompt)
        self._whole_tokens[case.id] = len(ids)
        return self._put(case, ids, "" if self._options.think else _BEGUN, self._answer_tokens)

    def _second(self, case: _Case, thoughts: Answer) -> Question:
        prompt = (
            f"{case.asked('The text is left out here.', 'questions')}\n{_THINK} {thoughts.text.strip()}"
            f"\n\nBy this reasoning, which one of the answers is most likely? {_ANSWER_SO}"
        )
        return self._put(case, self._subject.tokenizer.encode(prompt), _BEGUN, _ANSWER_TOKENS)

    def _put(self, case: _Case, ids: list[int], begun: str, max_tokens: int) -> Question:
        tokenizer, chat = self._subject.tokenizer, self._options.chat
        prompt = without_middle(ids, self._room()) + ([] if chat else tokenizer.encode(begun))
        return ask(tokenizer, prompt, (case.answer,), max_tokens=max_tokens, chat=chat)


def without_middle(ids: list[int], count: int) -> list[int]:
    """The first and the last half of ``count`` tokens, or all where there are no more.

    As the authors cut: of an odd number the second half has one more.
    """
    return ids if len(ids) <= count else ids[: count // 2] + ids[len(ids) - (count + 1) // 2 :]


def chosen(text: str) -> str | None:
    """The letter of the choice that a text names; None where it names none.

    The authors' rule: asterisks are left out, a letter in parentheses goes before one without, the first counts.
    """
    text = text.replace("*", "")
    for form in (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])"):
        if found := re.search(form, text):
            return found[1]
    return None


def _checked(row: PublishedRow) -> _Case:
    facts = {
        "difficulty": row.text("difficulty", _DIFFICULTIES),
        "length": row.text("length", _LENGTHS),
        "domain": row.text("domain"),
        "sub_domain": row.text("sub_domain"),
    }
    choices = {letter: row.text(f"choice_{letter}").strip() for letter in _LETTERS}
    document, question = row.text("context").strip(), row.text("question").strip()
    return _Case(row.text("_id"), facts, document, question, choices, row.text("answer", _LETTERS))


def _distinct(rows: Sequence[PublishedRow], cases: list[_Case]) -> list[_Case]:
    seen: dict[str, str] = {}
    for row, case in zip(rows, cases, strict=True):
        if case.id in seen:
            raise row.broken("_id", f"unlike that of {seen[case.id]}; remove one of them.")
        seen[case.id] = row.where
    return cases
