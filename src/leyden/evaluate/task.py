"""What a task of ``leyden eval`` is: items to ask a model, a grade for each answer, and figures of all grades.

A task that generates gives each item a prompt and grades the text that the model answers. A task of likelihoods gives
each item a prompt and grades the log-probabilities that the model gives the prompt's own tokens; nothing is generated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from leyden.core.errors import UserError
from leyden.evaluate.haystack import Haystack
from leyden.tokenizer import Tokenizer

Row = dict[str, Any]
"""One item's result, as a line of ``TASK.jsonl`` has it."""


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
        prompt: token ids with the one that begins a document, or the turns of a chat.
        expected: the texts that a right answer holds; how they count is the task's affair.
        max_tokens: how many tokens the answer may have; 0 asks for the log-probabilities of the prompt's own tokens.
        stop: of a question that generates, texts that end the answer and are no part of it.
        greedy: of a question about likelihoods, whether each token has to be compared with the most probable one.
        scored: of a question about likelihoods, how many of the prompt's last tokens it is about; None for all but the
            first.
    """

    prompt: Sequence[int] | Sequence[Mapping[str, str]]
    expected: tuple[str, ...] = ()
    max_tokens: int = 0
    stop: tuple[str, ...] = ()
    greedy: bool = False
    scored: int | None = None

    @property
    def is_chat(self) -> bool:
        """Whether the prompt is the turns of a chat."""
        return len(self.prompt) > 0 and isinstance(self.prompt[0], Mapping)


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: the generated text; empty for a question about likelihoods.
        prompt_tokens: how many tokens were read.
        nats: [scored] float64, the negative log-probability of each token that the question is about; None where text
            was generated.
        greedy: [scored] bool, whether that token was the most probable one; None unless the question asks for it.
    """

    text: str
    prompt_tokens: int
    nats: np.ndarray | None = None
    greedy: np.ndarray | None = None


@dataclass(frozen=True)
class TaskItem:
    """One question of a task, which is built when it is needed: a prompt of a million tokens is not kept.

    Attributes:
        id: unlike any other item's of the task. The same settings give the same question under it.
        build: makes the question.
        facts: what tables and pictures are by (``length``, ``depth``, ...); they stand in the item's row.
        group: items of one group follow each other and are asked together, as their prompts share a beginning; "" for
            an item by itself.
        cost: tokens that are read for it, about, by which the time left is told.
        then: makes a second question of the first one's answer; the second answer is what is graded.
    """

    id: str
    build: Callable[[], Question]
    facts: Row = field(default_factory=dict)
    group: str = ""
    cost: int = 1
    then: Callable[[Answer], Question] | None = None


class Task(Protocol):
    """A task, made for one model and one set of options."""

    @property
    def name(self) -> str:
        """As it stands on the command line."""
        ...

    def settings(self) -> Row:
        """What, beside an item's id, decides its question and its grade. Rows of other settings are not reused."""
        ...

    def items(self) -> list[TaskItem]:
        """All items; those of a group stand together.

        Raises:
            UserError: the options do not fit the model or each other.
        """
        ...

    def grade(self, item: TaskItem, question: Question, answer: Answer) -> Row:
        """The item's ``score``, and what else of the answer its row keeps."""
        ...

    def summary(self, rows: Sequence[Row]) -> Row:
        """Figures of all rows: ``value``, ``stderr``, ``interval``, ``n`` and what else the task's line has.

        ``of_documents``, where it is there, goes to a file of its own and not into the line.
        """
        ...


@dataclass(frozen=True)
class Options:
    """What a user asks of the tasks; each takes what it knows of, and has a default of its own where None stands.

    Attributes:
        lengths: tokens of a prompt and its answer together.
        depths: how many places in a haystack, evenly spread.
        samples: items in each cell of the grid.
        pairs: how many keys and values.
        limit: at most so many items a task (:func:`leyden.evaluate.prompts.evenly`).
        seed: of everything that is drawn.
        file: published rows.
        text: files and folders of documents; empty for the Python standard library's sources.
        subtasks: names, where a task has parts.
        chat: put the question as a chat's turn, by the model's template, instead of as text to go on from.
        apart: one needle a prompt, where several could share one.
        think: let the model reason before it answers, where a task has both ways.
        include_path: folders of task files for lm-eval.
        shots: examples before each question, where a task has some.
    """

    lengths: tuple[int, ...] | None = None
    depths: int | None = None
    samples: int | None = None
    pairs: tuple[int, ...] | None = None
    limit: int | None = None
    seed: int = 0
    file: Path | None = None
    text: tuple[Path, ...] = ()
    subtasks: tuple[str, ...] | None = None
    chat: bool = False
    apart: bool = False
    think: bool = False
    include_path: tuple[Path, ...] = ()
    shots: int | None = None


@dataclass(frozen=True)
class Subject:
    """What tasks have to know of the model that they ask.

    Attributes:
        name: as the user gave it.
        tokenizer: lengths are counted with it, and prompts made.
        positions: tokens of a prompt and its answer; None where that is not known.
        vocab_size: of the model.
        haystack: text to hide something in; tokenised once for all tasks.
        chats: whether it takes the turns of a chat.
    """

    name: str
    tokenizer: Tokenizer
    positions: int | None
    vocab_size: int
    haystack: Haystack
    chats: bool = False

    def lengths(self, asked: tuple[int, ...] | None, default: tuple[int, ...]) -> tuple[int, ...]:
        """The lengths that were asked for; where none were, those of ``default`` that the model can read.

        A model with fewer positions than all of these is asked at as many as it has.
        """
        if asked or self.positions is None:
            return asked or default
        positions = self.positions
        return tuple(length for length in default if length <= positions) or (positions,)

    def check_length(self, task: str, length: int, least: int, why: str) -> None:
        """Refuse a length that the model cannot read, or that has no room for what the task puts into it.

        Args:
            task: its name.
            length: tokens that were asked for.
            least: tokens that the task needs.
            why: what these are, for the message.

        Raises:
            UserError: the length does not fit.
        """
        if self.positions is not None and length > self.positions:
            raise UserError(
                f"{task}: a length of {length} tokens was asked for, and {self.name} has {self.positions} positions "
                f"(max_position_embeddings); give --lengths up to {self.positions}, or a model for longer contexts."
            )
        if length < least:
            raise UserError(
                f"{task}: a length of {length} tokens was asked for, and {why} take {least}; give --lengths from "
                f"{least} on."
            )
