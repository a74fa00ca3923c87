"""N-gram models with interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998, section 4.1.2), in numpy.

An n-gram is the row of its first n-1 words in the table below, and its last word: one 64-bit key, exact. A whole batch
of text is looked up order by order. Probabilities are those that KenLM's trainer estimates (Heafield et al. 2013):
discounts in closed form, ``<unk>`` with an even share of what the unigrams leave, ``<s>`` a context alone.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from leyden.core.errors import UserError
from leyden.core.files import atomic_directory
from leyden.data.arrays import write_array
from leyden.data.label.ngram_tables import KeyTable

UNK, BOS, EOS = 0, 1, 2
"""Ids of the words that every model has."""
SPECIAL = ("<unk>", "<s>", "</s>")
_NEVER = -99.0
"""ARPA's logarithm of no probability."""


@dataclass(frozen=True)
class Order:
    """The n-grams of one length.

    Attributes:
        keys: [N] uint64, sorted: the row of the first n-1 words among the n-grams one shorter, times the number of
            words, and the last word. For single words the word itself.
        logs: [N] float32, log10 of the probability of the last word after the others.
        backoffs: [N] float32, log10 of the weight of shorter contexts where the n-gram is the context; 0 of the
            longest.
    """

    keys: np.ndarray
    logs: np.ndarray
    backoffs: np.ndarray


class NGramModel:
    """A model.

    Args:
        words: [V], the vocabulary; begins with :data:`SPECIAL`.
        orders: from single words to the longest n-grams.
    """

    def __init__(self, words: Sequence[str], orders: Sequence[Order]) -> None:
        self.words = list(words)
        self.orders = list(orders)
        self.ids = {word: id_ for id_, word in enumerate(self.words)}
        self._tables = [KeyTable(order.keys) for order in self.orders[1:]]

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """log10 of the probability of each word after those before it in its sentence.

        Args:
            tokens: [T] int, sentences one after the other, each from :data:`BOS` to :data:`EOS`.

        Returns:
            [T] float64; 0 for :data:`BOS`.
        """
        tokens = np.asarray(tokens, np.int64)
        vocabulary = len(self.words)
        rows = tokens  # of the n-gram that ends at each token, as long as the present order; -1 where there is none
        result = self.orders[0].logs[tokens].astype(np.float64)
        position = np.arange(len(tokens)) - np.maximum.accumulate(
            np.where(tokens == BOS, np.arange(len(tokens)), 0)
        )  # in its sentence
        for n, (order, table) in enumerate(zip(self.orders[1:], self._tables, strict=True), 2):
            context = np.full(len(tokens), -1, np.int64)
            context[1:] = rows[:-1]
            there = np.flatnonzero((context >= 0) & (position >= n - 1))
            if not len(there):
                break
            before = context[there]
            found = table.find(before.astype(np.uint64) * np.uint64(vocabulary) + tokens[there].astype(np.uint64))
            hit = found >= 0
            # A longer n-gram is taken where there is one; where there is none, its context, if known, has a weight.
            result[there] += np.where(hit, 0.0, self.orders[n - 2].backoffs[before])
            result[there[hit]] = order.logs[found[hit]]
            rows = np.full(len(tokens), -1, np.int64)
            rows[there] = found
        result[tokens == BOS] = 0.0
        return result

    def encode(self, sentences: Iterable[Sequence[str]]) -> np.ndarray:
        """[T] int64, sentences of words as ids, each from :data:`BOS` to :data:`EOS`."""
        ids, result = self.ids, []
        for sentence in sentences:
            result += [BOS, *[ids.get(word, UNK) for word in sentence], EOS]
        return np.array(result, np.int64)

    def save(self, directory: Path) -> None:
        """Write the model; :meth:`load` maps it into memory, so that processes share it."""
        with atomic_directory(directory) as part:
            (part / "words.txt").write_text("".join(word + "\n" for word in self.words), encoding="utf-8")
            for n, order in enumerate(self.orders, 1):
                for name in Order.__annotations__:
                    write_array(part / f"{n}-{name}.npy", getattr(order, name))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """A model that was saved.

        Raises:
            UserError: there is none.
        """
        if not (directory / "words.txt").exists():
            raise UserError(f"{directory} holds no n-gram model.")
        words = (directory / "words.txt").read_text(encoding="utf-8").split("\n")[:-1]
        orders = []
        while (directory / f"{len(orders) + 1}-keys.npy").exists():
            n = len(orders) + 1
            orders.append(Order(*(np.load(directory / f"{n}-{name}.npy") for name in Order.__annotations__)))
        return cls(words, orders)

    def n_grams(self, n: int) -> Iterator[tuple[tuple[str, ...], float, float]]:
        """The words, the logarithm and the backoff of every n-gram of a length."""
        words = self._spelled(n)
        order = self.orders[n - 1]
        for row, log, backoff in zip(words.tolist(), order.logs.tolist(), order.backoffs.tolist(), strict=True):
            yield tuple(self.words[word] for word in row), log, backoff

    def _spelled(self, n: int) -> np.ndarray:
        """[N, n] int64, the words of every n-gram of a length."""
        keys = self.orders[n - 1].keys
        if n == 1:
            return keys.astype(np.int64)[:, None]
        before, last = np.divmod(keys, np.uint64(len(self.words)))
        return np.concatenate([self._spelled(n - 1)[before.astype(np.int64)], last.astype(np.int64)[:, None]], axis=1)


def perplexity(logs: np.ndarray) -> float:
    """10 to the mean of the negated log10 probabilities [T] of words and sentence ends; NaN of none."""
    return math.pow(10.0, -float(np.mean(logs))) if len(logs) else math.nan
