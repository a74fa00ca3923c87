"""The sections of a recipe that say one thing each: the tokenizer, the data, and what is evaluated."""

import itertools
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from leyden.align.chats.fitting import TooLong
from leyden.core.config import Config
from leyden.core.errors import UserError, suggest
from leyden.core.lengths import tokens_of
from leyden.evaluate import Options
from leyden.evaluate.tasks import HARNESS, TASKS

Rows = Literal["chats", "preferences", "solutions"]
ROWS: tuple[Rows, ...] = ("chats", "preferences", "solutions")
"""Keys of ``[data]`` that name files of rows."""


class TokenizerSection(Config):
    """Which tokenizer: one that exists, or one trained on the recipe's own text."""

    path: Path | None = None
    """A directory with ``tokenizer.json``. None: train one."""
    vocab_size: int = Field(default=8192, ge=261)
    """Of a tokenizer that is trained; the 256 bytes and the special tokens count."""
    allow_smaller: bool = False
    """Train on a text too small for so many as well, with as many as it supports; the model keeps its rows."""


class DataSection(Config):
    """Which documents: ``text`` that the run reads itself, what ``leyden data build`` made, or token files of other
    toolkits."""

    build: Path | None = None
    """The directory of a build with ``[tokens]``. Its tokenizer and token shards are used; documents that a
    ``hold_out`` stage took out are evaluated on."""

    text: tuple[Path, ...] | dict[str, tuple[Path, ...]] = ()
    """Files and folders of documents: a list, or a list for each of several groups. Empty, and without another source:
    that of the running Python's standard library, which ``python:stdlib`` names in a list. A run whose every stage has
    data of its own, and whose tokenizer is there, then reads none."""
    tokens: tuple[Path, ...] | dict[str, tuple[Path, ...]] = ()
    """Files and folders of tokens that another toolkit wrote: a list, or a list for each of several groups."""
    chats: tuple[str, ...] = ()
    """Files and folders of chats, or ``hf://OWNER/NAME``, for stages that train on answers."""
    preferences: tuple[str, ...] = ()
    """Files and folders of preference pairs, or ``hf://OWNER/NAME``, for stages that train on them."""
    solutions: tuple[str, ...] = ()
    """Files and folders of solutions in steps with labels, or ``hf://OWNER/NAME``, for process reward models."""
    too_long: TooLong = "cut"
    """What becomes of a chat, a pair or a solution that is longer than ``seq_len``: ``cut`` keeps its beginning,
    ``leave_out`` nothing."""
    document_token: int | None = Field(default=None, ge=0)
    """The token that ends each document, in token files that do not say where documents end. None: the tokenizer's."""
    held_out_fraction: float = Field(default=0.02, gt=0, lt=1)
    """The share of the documents of ``text`` or ``tokens``, or of the ``chats``, ``preferences`` or
    ``solutions``, kept for evaluation."""
    recall_share: float = Field(default=0.0, ge=0, le=1)
    """The share of the documents of ``text`` in which the data stage ``recall`` plants numbers and asks for them."""

    recall_group: str = ""
    """The group of the documents that ``recall_share`` makes, beside their originals. Empty: they take their place."""

    recall_learn: Literal["all", "answers"] = "all"
    """What of them is learned: ``all``, or ``answers``; then they are pieces of the documents, in their own group."""

    @field_validator("text", "tokens", mode="before")
    @classmethod
    def _lists(cls, given: Any) -> Any:
        groups = given if isinstance(given, dict) else {"all": given}
        if not all(isinstance(paths, list | tuple) for paths in groups.values()):
            raise ValueError('must be a list of paths, or a table of lists: {web = ["web/"], code = ["code/"]}')
        empty = [name for name, paths in groups.items() if not paths] if isinstance(given, dict) else []
        if empty:
            raise ValueError(f"group {', '.join(empty)} names no files; give it some, or leave it out")
        return given

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = (self.build is not None, self.text, self.tokens, self.chats, self.preferences, self.solutions)
        if sum(map(bool, given)) > 1:
            raise ValueError(
                "give either text, that the run reads, or build, the directory of a data build, or tokens, the token "
                "files of another toolkit, or chats, or preferences, or solutions"
            )
        if self.too_long != "cut" and self.rows is None:
            raise ValueError("too_long is for chats, preferences and solutions; give some, or leave it out")
        if self.document_token is not None and not self.tokens:
            raise ValueError("document_token is for token files; give tokens, or leave it out")
        if self.recall_share and (self.build is not None or self.tokens or self.rows is not None):
            raise ValueError("recall_share is of text that the run reads; a data build has a stage recall of its own")
        if self.recall_group and not (self.recall_share and isinstance(self.text, dict)):
            raise ValueError("recall_group goes with recall_share, and with text in groups: text = { code = [...] }")
        if self.recall_learn != "all" and not self.recall_group:
            raise ValueError('recall_learn = "answers" makes pieces of documents; give them a group with recall_group')
        return self

    @property
    def rows(self) -> Rows | None:
        """The key that names files of rows; None: the data are documents."""
        return next((key for key in ROWS if getattr(self, key)), None)

    @property
    def token_groups(self) -> dict[str, tuple[Path, ...]]:
        """``tokens`` by group; a list is one group, ``all``."""
        return self.tokens if isinstance(self.tokens, dict) else {"all": self.tokens}

    @property
    def text_groups(self) -> dict[str, tuple[Path, ...]]:
        """``text`` by group; a list is one group, ``all``."""
        return self.text if isinstance(self.text, dict) else {"all": self.text}

    @property
    def groups(self) -> set[str]:
        """Of token files or of text; rows have none."""
        if self.rows is not None:
            return {"all"}
        return set(self.token_groups if self.tokens else self.text_groups) | ({self.recall_group} - {""})


class TaskSection(Config):
    """A task of ``leyden eval`` that is measured while a model is trained: its name, how often, and its options."""

    task: str
    """Its name on the command line."""
    every_steps: int = Field(ge=0)
    """It is measured after every so many steps of the run, and at the end of each stage; 0: at the end
    of the last stage alone."""
    held_out: bool = False
    """The documents are those that the run holds out, instead of ``text``."""
    lengths: tuple[int, ...] | None = None
    """Tokens of a prompt and its answer: numbers, or texts as ``"32k"``."""
    depths: int | None = Field(default=None, ge=1)
    samples: int | None = Field(default=None, ge=1)
    pairs: tuple[int, ...] | None = None
    limit: int | None = Field(default=None, ge=1)
    seed: int = 0
    file: Path | None = None
    text: tuple[Path, ...] = ()
    include_path: tuple[Path, ...] = ()
    shots: int | None = Field(default=None, ge=0)
    subtasks: tuple[str, ...] | None = None
    chat: bool = False
    apart: bool = False
    think: bool = False
    """These are the options of the same names on the command line."""

    @field_validator("task")
    @classmethod
    def _known(cls, task: str) -> str:
        if task not in TASKS and not task.startswith(HARNESS):
            raise ValueError(f"must be {HARNESS}NAME or one of {', '.join(TASKS)}{suggest(task, TASKS)}")
        return task

    @field_validator("lengths", mode="before")
    @classmethod
    def _in_tokens(cls, lengths: Any) -> Any:
        if not isinstance(lengths, list | tuple):
            return lengths
        try:
            return tuple(sorted({tokens_of(str(length)) for length in lengths}))
        except UserError as error:
            raise ValueError(str(error).removesuffix(".")) from None

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if self.held_out and self.text:
            raise ValueError("'held_out' and 'text' both say which documents a task takes; give one of them")
        return self

    @property
    def options(self) -> Options:
        """As ``leyden eval`` takes them."""
        return Options(**self.model_dump(exclude={"task", "every_steps", "held_out"}))


class EvaluateSection(Config):
    """What is measured while a model is trained, and shown once it is done."""

    every_steps: int = Field(default=100, ge=0)
    """The loss on held-out documents is measured after every so many steps, and at the end of a stage; 0: never."""
    held_out_tokens: int = Field(default=16_384, ge=2)
    """Of the held-out documents, how many tokens that takes; rounded up to whole steps."""
    length_bounds: tuple[int, ...] = ()
    """The most tokens of each class of lengths but the last, by which the loss is measured as well."""

    task: tuple[TaskSection, ...] = ()
    """Tasks that are measured as well."""

    prompts: tuple[str, ...] = ()
    """Texts that the finished model completes."""
    sample_tokens: int = Field(default=128, ge=1)

    environment: str | None = None
    """``FILE.py:CLASS`` or ``MODULE:CLASS``, an environment as of ``[stage.rl]``: the finished model answers its
    held-out prompts by the likeliest tokens, and the run says how many answers are right."""
    environment_prompts: int = Field(default=200, ge=1)
    """How many of them at most."""
    answer_tokens: int = Field(default=32, ge=1)
    """Tokens of an answer at most."""

    @field_validator("length_bounds")
    @classmethod
    def _rise(cls, bounds: tuple[int, ...]) -> tuple[int, ...]:
        if any(second <= first for first, second in itertools.pairwise((0, *bounds))):
            raise ValueError(f"must be positive and rise; given {list(bounds)}")
        return bounds
