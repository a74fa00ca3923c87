"""Solutions in steps, some of them with a label: read from rows, and made into tokens with their marks.

A solution is its prompt as the chat template lays it out, and then each step followed by two line feeds, each a token
of its own. A step's score is read at the last token of its text, from which the two are to come. The mask of what is
learned says the label: the first line feed is learned where the step has one, and the second where it is right.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leyden.align.chats.chat import Message, prompt_of
from leyden.align.chats.read import read_rows
from leyden.align.chats.tokens import REFUSED, RowCounts, num_bytes, require_template
from leyden.core.errors import UserError
from leyden.data.documents import Reject
from leyden.data.hold_out_rule import draw
from leyden.data.readers.problem import Problem
from leyden.data.tokenise import TokenisedDocument
from leyden.tokenizer import Tokenizer

Label = bool | None
"""Whether a step is right; None: nothing is said of it."""

_BETWEEN_PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*")
_BETWEEN_LINES = re.compile(r"\s*\n\s*")


@dataclass(frozen=True)
class Solution:
    """A solution in steps.

    Attributes:
        id: the name of its file, and its row.
        source: the file.
        prompt: what it solves, as messages.
        steps: their texts, none of them empty.
        labels: one for each step; at least one says something.
    """

    id: str
    source: str
    prompt: tuple[Message, ...]
    steps: tuple[str, ...]
    labels: tuple[Label, ...]


def solution_of(row: Mapping[str, Any], id: str, source: str) -> Solution:
    """The solution of a row: a prompt, ``steps`` (or ``completions``), and as many ``labels``: true or 1, false or 0,
    or null.

    Raises:
        Problem: it has none.
    """
    prompt = prompt_of(row)
    steps, labels = row.get("steps", row.get("completions")), row.get("labels")
    if not isinstance(steps, list | tuple) or not isinstance(labels, list | tuple):
        raise Problem("no steps", "there are no lists steps (or completions) and labels")
    if len(steps) != len(labels):
        raise Problem("bad labels", f"{len(steps)} steps and {len(labels)} labels")
    if not all(isinstance(step, str) and step.strip() for step in steps):
        raise Problem("empty step", "each step is a text that says something")
    if not all(label is None or label in (0, 1) for label in labels):
        raise Problem("bad labels", "a label is true or 1, false or 0, or null")
    if all(label is None for label in labels):
        raise Problem("no labels", "nothing is said of any step")
    told = tuple(None if label is None else bool(label) for label in labels)
    return Solution(id, source, prompt, tuple(step.strip() for step in steps), told)


def read_solutions(paths: Sequence[str], rejects: list[Reject]) -> Iterator[Solution]:
    """The solutions of files; arguments and errors as of :func:`leyden.align.chats.read_chats`."""
    return read_rows(paths, rejects, solution_of, "solutions")


def begun_responses(response: str) -> list[str]:
    """What a response is up to the end of each of its steps, with the white space that parts it from the next one.

    Blank lines part steps; in a response without any, lines do.
    """
    told = response.strip()
    between = _BETWEEN_PARAGRAPHS if _BETWEEN_PARAGRAPHS.search(told) else _BETWEEN_LINES
    return [told[: gap.end()] for gap in between.finditer(told)] + ([told] if told else [])


def steps_of(response: str) -> tuple[str, ...]:
    """A response as steps, which blank lines part; where there are none, lines do."""
    return steps_between(begun_responses(response))


def steps_between(begun: Sequence[str]) -> tuple[str, ...]:
    """The steps that :func:`begun_responses` grow by."""
    return tuple(whole[len(before) :].strip() for before, whole in zip(["", *begun], begun, strict=False))


def encode_steps(
    prompt: Sequence[Message], steps: Sequence[str], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a prompt and steps, [T] int32, and where the text of each step ends, [steps] int64.

    Raises:
        UserError: the template refuses the prompt, or a line feed is no token of the tokenizer.
    """
    line_feed = tokenizer.encode("\n")
    if len(line_feed) != 1:
        raise UserError("the tokenizer has no token for a line feed, which ends a step; take another.")
    ids, ends = [*tokenizer.encode_chat(list(prompt), None)], list[int]()
    for step in steps:
        ids += tokenizer.encode(step)
        ends.append(len(ids) - 1)
        ids += line_feed * 2
    return np.array(ids, np.int32), np.array(ends, np.int64)


class SolutionCounts(RowCounts):
    """Of solutions; ``answers`` has their labels, and ``answer_tokens`` those that say that a step is right."""

    noun = "solutions"

    def __str__(self) -> str:
        return (
            f"{self.rows:,} with {self.answers:,} labelled steps, {self.answer_tokens:,} of them right, "
            f"{self.tokens:,} tokens; {self.set_aside()}"
        )


def tokenise_solutions(
    solutions: Iterable[Solution], tokenizer: Tokenizer, counts: SolutionCounts
) -> Iterator[TokenisedDocument]:
    """Each solution as tokens, with its labels as marks.

    Args:
        solutions: as :func:`read_solutions` gives them.
        tokenizer: whose template lays out the prompt.
        counts: are counted up; a solution that the template refuses goes to its ``rejects``. Solutions of one prompt
            are held out together.

    Raises:
        UserError: the tokenizer has no chat template, or no token for a line feed.
    """
    require_template(tokenizer, counts)
    for one in solutions:
        try:
            ids, ends = encode_steps(one.prompt, one.steps, tokenizer)
        except UserError as error:
            counts.rejects.append(Reject(one.source, f"row {one.id.rpartition(':')[2]}", REFUSED, str(error)[:400]))
            continue
        learned = np.zeros(len(ids), bool)
        learned[ends + 1] = [label is not None for label in one.labels]
        learned[ends + 2] = [label is True for label in one.labels]
        counts.rows += 1
        counts.answers += sum(label is not None for label in one.labels)
        counts.answer_tokens += sum(label is True for label in one.labels)
        counts.tokens += len(ids)
        counts.draws.append(draw(json.dumps(one.prompt, sort_keys=True).encode()))
        size = num_bytes(one.prompt) + sum(len(step.encode()) for step in one.steps)
        yield TokenisedDocument(ids, learned, one.id, one.source, size)
