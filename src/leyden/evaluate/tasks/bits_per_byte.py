"""Bits per byte of documents, beside what xz needs for the same bytes; see :mod:`leyden.evaluate.likelihood`."""

import functools
import math
from collections.abc import Sequence

import numpy as np

from leyden.core.errors import UserError
from leyden.data import Reject, read_documents
from leyden.evaluate.baselines import xz_bits_per_byte
from leyden.evaluate.likelihood import Window, cut
from leyden.evaluate.scores import normal_interval
from leyden.evaluate.task import Answer, Options, Question, Row, Subject, TaskItem

_UNKNOWN_POSITIONS = 2048
"""Tokens of a window, where nobody says how many positions the model has."""


class BitsPerByteTask:
    """The task ``bits_per_byte``: one item a window of a document.

    Raises:
        UserError: no documents were named, or they hold no bytes.
    """

    name = "bits_per_byte"

    def __init__(self, options: Options, subject: Subject) -> None:
        if not options.text:
            raise UserError("bits_per_byte measures a model on documents; name files or folders of them with --text.")
        self._rejects: list[Reject] = []
        self._documents = [document.text for document in read_documents(options.text, self._rejects)]
        if options.limit is not None:
            self._documents = self._documents[: options.limit]
        self._sizes = [len(text.encode()) for text in self._documents]
        if not sum(self._sizes):
            raise UserError(f"bits_per_byte needs text; the {len(self._documents)} documents given hold no bytes.")
        self._subject = subject
        self._context_tokens = subject.positions or _UNKNOWN_POSITIONS

    def settings(self) -> Row:
        """The texts, and how long a window is."""
        return {"text": self._subject.haystack.source, "context_tokens": self._context_tokens}

    def items(self) -> list[TaskItem]:
        """Every window of every document."""
        tokenizer, items = self._subject.tokenizer, []
        for document, ids in enumerate(tokenizer.encode_batch(self._documents)):
            for part, window in enumerate(cut(tokenizer, ids, self._context_tokens)):
                facts = {"document": document, "bytes": self._sizes[document] if part == 0 else 0}
                build = functools.partial(_question, window)
                items.append(TaskItem(f"{document}-{part}", build, facts, cost=len(window.labels)))
        return items

    def grade(self, item: TaskItem, question: Question, answer: Answer) -> Row:
        """Nats a token as the score; the sums of the window stand beside it."""
        assert answer.nats is not None, "the question is about likelihoods"
        nats = math.fsum(answer.nats)
        return {"score": nats / len(answer.nats), "nats": nats, "tokens": len(answer.nats)}

    def summary(self, rows: Sequence[Row]) -> Row:
        """Bits per byte of all documents together; its error is that of a ratio of sums over documents."""
        count = max(row["document"] for row in rows) + 1
        nats, sizes = np.zeros(count), np.zeros(count)
        for row in rows:
            nats[row["document"]] += row["nats"]
            sizes[row["document"]] += row["bytes"]
        bits = nats / math.log(2)
        value = math.fsum(row["nats"] for row in rows) / math.log(2) / sizes.sum()
        return {
            "value": value,
            "baselines": {
                "xz_4096": xz_bits_per_byte(self._documents),
                "xz_documents": xz_bits_per_byte(self._documents, piece_bytes=None),
            },
            "documents": count,
            "bytes": int(sizes.sum()),
            "tokens": sum(row["tokens"] for row in rows),
            "set_aside": len(self._rejects),
            **normal_interval(value, bits - value * sizes, sizes.sum()),
            "n": count,
        }


def _question(window: Window) -> Question:
    return Question([int(window.inputs[0]), *window.labels.tolist()])
