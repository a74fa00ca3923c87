"""The loss by position: whether a token that stands far into a long document is foretold better than an early one.

Every window is a stretch of a document as long as ``--lengths`` says, read after the token that begins one. A token's
position is how many tokens stand before it. Positions are gathered between powers of two, and every window has tokens
in all of them, so that the curve compares the same documents with themselves.
"""

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from leyden.core.errors import UserError
from leyden.data import Reject, read_documents, standard_library_sources
from leyden.evaluate.scores import ratio_with_interval
from leyden.evaluate.task import Answer, Options, Question, Row, Subject, TaskItem

_LENGTHS = (1024, 2048, 4096)
_FIRST_BOUND = 16
"""Positions before it are one bucket."""
_WINDOWS = 4
"""Of one document, where ``--samples`` does not say."""
_DOCUMENTS = 32
"""Of the standard library, where ``--limit`` does not say."""
_LEAST_LENGTH = 2 * _FIRST_BOUND
_TOGETHER_TOKENS = 8192
"""Windows from so many tokens on are built one at a time: a prompt of a million tokens is not kept."""


class PerplexityByPosition:
    """The task ``perplexity_by_position``; see the module.

    Raises:
        UserError: no document is as long as the longest window.
    """

    name = "perplexity_by_position"

    def __init__(self, options: Options, subject: Subject) -> None:
        self._subject, self._options = subject, options
        self._lengths = tuple(sorted(set(subject.lengths(options.lengths, _LENGTHS))))
        for length in self._lengths:
            subject.check_length(self.name, length, _LEAST_LENGTH, "two buckets of positions")
        self._windows = _WINDOWS if options.samples is None else options.samples
        self._rejects: list[Reject] = []
        self._documents = list(self._long_documents())
        self._byte_counts = np.array([len(subject.tokenizer.token_bytes(id)) for id in range(subject.vocab_size)])

    def settings(self) -> Row:
        """The texts, and the longest window, which decides what documents are read."""
        return {"text": self._subject.haystack.source, "longest": self._lengths[-1]}

    def items(self) -> list[TaskItem]:
        """Every window of every long document, for each length."""
        items = []
        for length in self._lengths:
            for document, ids in enumerate(self._documents):
                for part in range(min(self._windows, len(ids) // (length - 1))):
                    id = f"{length}-{document}-{part}"
                    build = functools.partial(self._question, length, document, part)
                    facts = {"length": length, "document": document}
                    items.append(TaskItem(id, build, facts, id if length >= _TOGETHER_TOKENS else "", length))
        return items

    def grade(self, item: TaskItem, question: Question, answer: Answer) -> Row:
        """Nats a token as the score, and the sums of each bucket."""
        assert answer.nats is not None, "the question is about likelihoods"
        starts = bucket_bounds(len(question.prompt))[:-1] - 1  # the first label stands at position 1
        sizes = self._byte_counts[np.asarray(question.prompt[1:])]
        return {
            "score": math.fsum(answer.nats) / len(answer.nats),
            "nats": np.add.reduceat(answer.nats, starts).tolist(),
            "bytes": np.add.reduceat(sizes, starts).tolist(),
        }

    def summary(self, rows: Sequence[Row]) -> Row:
        """Nats a token in windows of the longest length, and of every length the curve over positions.

        The intervals are bootstraps over documents.
        """
        of_length = {length: [row for row in rows if row["length"] == length] for length in self._lengths}
        longest = of_length[self._lengths[-1]]
        cells = [cell for length, own in of_length.items() for cell in self._cells(length, own)]
        nats, _, tokens = self._sums(self._lengths[-1], longest)
        value = ratio_with_interval(nats.sum(1), tokens.sum(1))
        return {
            **value,
            "perplexity": round(math.exp(value["value"]), 6),
            "documents": len(self._documents),
            "set_aside": len(self._rejects),
            "plot": {"x": "position", "y": "nats per token"},
            "cells": cells,
        }

    def _cells(self, length: int, rows: Sequence[Row]) -> list[Row]:
        """One for each bucket, named by the position at which it ends."""
        nats, sizes, tokens = self._sums(length, rows)
        cells = []
        for bucket, end in enumerate(bucket_bounds(length)[1:].tolist()):
            figures = ratio_with_interval(nats[:, bucket], tokens[:, bucket])
            num_bytes = sizes[:, bucket].sum()
            bits = round(nats[:, bucket].sum() / math.log(2) / num_bytes, 6) if num_bytes else None
            perplexity = round(math.exp(figures["value"]), 6)
            facts = {"length": length, "position": end}
            cells.append({**facts, **figures, "perplexity": perplexity, "bits_per_byte": bits})
        return cells

    def _sums(self, length: int, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nats, bytes and tokens of each document in each bucket, [documents, buckets] each."""
        bounds = bucket_bounds(length)
        documents = {document: place for place, document in enumerate(dict.fromkeys(row["document"] for row in rows))}
        nats, sizes, windows = np.zeros((3, len(documents), len(bounds) - 1))
        for row in rows:
            place = documents[row["document"]]
            nats[place] += row["nats"]
            sizes[place] += row["bytes"]
            windows[place] += 1
        return nats, sizes, windows * np.diff(bounds)

    def _long_documents(self) -> Iterator[np.ndarray]:
        """The tokens of each document that fills the longest window, as far as its windows reach."""
        options, need, longest, found = self._options, self._lengths[-1] - 1, 0, 0
        limit = options.limit
        if limit is None and not options.text:
            limit = _DOCUMENTS
        for document in read_documents(list(options.text) or standard_library_sources(), self._rejects):
            if found == limit:
                return
            if len(document.text.encode("utf-8", "surrogatepass")) < need:  # a token has at least a byte
                continue
            (ids,) = self._subject.tokenizer.encode_batch([document.text])
            longest = max(longest, len(ids))
            if len(ids) >= need:
                found += 1
                yield ids[: self._windows * need]
        if not found:
            raise UserError(
                f"{self.name}: no document fills a window of {need + 1} tokens (the longest has {longest}); give "
                "longer documents with --text, or shorter --lengths."
            )

    def _question(self, length: int, document: int, part: int) -> Question:
        stretch = self._documents[document][part * (length - 1) : (part + 1) * (length - 1)]
        return Question([self._subject.tokenizer.bos_id, *stretch.tolist()])


def bucket_bounds(length: int) -> np.ndarray:
    """Where buckets of positions begin, and where the last one ends: 1, 16, 32, 64, ..., ``length``; int64."""
    doubled = [_FIRST_BOUND << k for k in range(length.bit_length()) if _FIRST_BOUND << k < length]
    return np.array([1, *doubled, length])
