"""Multi-query associative recall: pairs of keys and values, then keys again, each to be followed by its value.

After Arora et al., "Zoology" (arXiv 2312.04927, section 3.1 and appendix): the pairs stand at the beginning, every key
is asked for once, and how long after the pairs is drawn by a power law, so that most questions come soon. Keys are of
one half of the model's vocabulary and values of the other. Between the questions stand tokens that are no keys of this
sequence. Behind a key that is asked for stands its value, so that a sequence is also a text to train on.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leyden.core.errors import UserError
from leyden.evaluate.prompts import some_of_grid
from leyden.evaluate.scores import by_axes, mean_with_interval
from leyden.evaluate.task import Answer, Options, Question, Row, Subject, TaskItem

_LENGTHS = (256,)
_PAIRS = (4, 8, 16, 32, 64)
_SAMPLES = 64
POWER = 0.01
"""Of the law by which the questions' places are drawn, as in the paper: P(place) goes as place^(POWER - 1)."""


@dataclass(frozen=True)
class RecallSequence:
    """One sequence of multi-query associative recall.

    Attributes:
        tokens: [T] int64.
        answers: [pairs] int64, rising: where in ``tokens`` the values stand that are to be recalled. Each is
            determined by what stands before it.
    """

    tokens: np.ndarray
    answers: np.ndarray


def recall_sequence(
    vocabulary: np.ndarray, length: int, pairs: int, generator: np.random.Generator, *, power: float = POWER
) -> RecallSequence:
    """Draw a sequence.

    Args:
        vocabulary: [V] token ids, without special ones; keys are of its first half.
        length: tokens, at least four a pair.
        pairs: keys with values, at most V // 2 - 1.
        generator: draws everything.
        power: the smaller, the sooner after the pairs most questions come.
    """
    half = len(vocabulary) // 2
    keys = generator.choice(vocabulary[:half], pairs, replace=False)
    values = generator.choice(vocabulary[half:], pairs, replace=True)
    others = np.setdiff1d(vocabulary, keys)
    tokens = generator.choice(others, length)
    tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2] = keys, values
    places = np.arange(1, (length - 2 * pairs) // 2 + 1)
    weights = places ** (power - 1.0)
    asked = generator.choice(places - 1, pairs, replace=False, p=weights / weights.sum())
    questions = 2 * pairs + 2 * asked
    tokens[questions], tokens[questions + 1] = keys, values
    return RecallSequence(tokens, np.sort(questions + 1))


class Mqar:
    """The task ``mqar``; see the module."""

    name = "mqar"

    def __init__(self, options: Options, subject: Subject) -> None:
        self._options, self._subject = options, subject
        self._lengths = options.lengths or _LENGTHS
        self._pairs = options.pairs or _PAIRS
        self._samples = _SAMPLES if options.samples is None else options.samples
        tokenizer = subject.tokenizer
        ids = [id for id in range(tokenizer.vocab_size) if not tokenizer.is_special(id) and tokenizer.token_bytes(id)]
        self._vocabulary = np.array(ids, np.int64)

    def settings(self) -> Row:
        """The seed, and the vocabulary's size."""
        return {"seed": self._options.seed, "vocabulary": len(self._vocabulary), "power": POWER}

    def items(self) -> list[TaskItem]:
        """One sequence for each length, number of pairs and sample."""
        most = len(self._vocabulary) // 2 - 1
        items = []
        for length in self._lengths:
            for pairs in self._pairs:
                if not 1 <= pairs <= most:
                    raise UserError(
                        f"mqar: {pairs} pairs were asked for; a vocabulary of {len(self._vocabulary)} tokens has room "
                        f"for 1 to {most}. Give other --pairs."
                    )
                self._subject.check_length(self.name, length, 4 * pairs + 1, f"{pairs} pairs and their questions")
                for sample in range(self._samples):
                    facts = {"length": length, "pairs": pairs, "sample": sample}
                    build = functools.partial(self._question, length, pairs, sample)
                    items.append(TaskItem(f"{length}-{pairs}-{sample}", build, facts, cost=length))
        return some_of_grid(items, self._options.limit)

    def grade(self, item: TaskItem, question: Question, answer: Answer) -> Row:
        """The share of the values that are the most probable token in their place."""
        assert answer.greedy is not None, "the question asks which tokens are the most probable"
        answers = self._sequence(item.facts["length"], item.facts["pairs"], item.facts["sample"]).answers
        return {"score": float(answer.greedy[answers].mean())}  # the first token's answer is that behind the bos

    def summary(self, rows: Sequence[Row]) -> Row:
        """The share of values recalled, of all and by number of pairs."""
        return {
            **mean_with_interval([row["score"] for row in rows]),
            "plot": {"x": "pairs", "y": "share recalled"},
            "cells": by_axes(rows, ("length", "pairs")),
        }

    def _sequence(self, length: int, pairs: int, sample: int) -> RecallSequence:
        """Of ``length`` tokens with the one that begins a document."""
        generator = np.random.default_rng([self._options.seed, length, pairs, sample])
        return recall_sequence(self._vocabulary, length - 1, pairs, generator)

    def _question(self, length: int, pairs: int, sample: int) -> Question:
        tokens = self._sequence(length, pairs, sample).tokens.tolist()
        return Question([self._subject.tokenizer.bos_id, *tokens], greedy=True)
