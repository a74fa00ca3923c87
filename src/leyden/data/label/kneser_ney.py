"""Estimation of n-gram models: interpolated modified Kneser-Ney (Chen and Goodman 1998, section 4.1.2).

Orders below the longest count the different words that an n-gram follows, not how often it is there; n-grams that begin
a sentence follow none and keep their counts. About 30 bytes of memory for each word of the text and each order.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from leyden.core.errors import UserError
from leyden.data.label.ngram import _NEVER, BOS, EOS, SPECIAL, UNK, NGramModel, Order

_FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where there are too few n-grams for the closed form; KenLM's ``--discount_fallback``."""


@dataclass(frozen=True)
class _Counted:
    """The n-grams of one length in the text.

    Attributes:
        keys: [N] uint64, sorted; as :attr:`Order.keys`.
        counts: [N] int64, how often each is there.
        adjusted: [N] int64, how many different words it follows; of the longest, and at a sentence's beginning, counts.
        suffixes: [N] int64, the row of its last n-1 words one order below.
    """

    keys: np.ndarray
    counts: np.ndarray
    adjusted: np.ndarray
    suffixes: np.ndarray


def train_ngrams(sentences: Iterable[Sequence[str]], order: int, *, min_count: int = 1) -> NGramModel:
    """Estimate a model.

    Args:
        sentences: of words, which contain no white space.
        order: words in the longest n-gram.
        min_count: n-grams of three and more words that are there less often are left out. Their probability falls to
            shorter contexts.

    Raises:
        UserError: there is no word.
    """
    words, tokens = _vocabulary(sentences)
    counted = _count(tokens, len(words), order)
    kept = [np.ones(len(c.keys), bool) if n < 3 else c.counts >= min_count for n, c in enumerate(counted, 1)]
    probabilities = [_unigrams(counted[0])]
    weights: list[np.ndarray] = []
    for n in range(1, order):
        above = counted[n]
        contexts = (above.keys // np.uint64(len(words))).astype(np.int64)
        totals = np.bincount(contexts, above.adjusted, len(counted[n - 1].keys))
        discounted = above.adjusted - _amounts(above.adjusted)
        share = np.where(kept[n], discounted, 0.0) / totals[contexts]
        # What the n-grams of a context leave is for shorter contexts; a context that is never followed leaves all.
        weight = 1.0 - np.bincount(contexts, share, len(totals))
        weights.append(np.clip(weight, 1e-30, 1.0))
        probabilities.append(share + weights[-1][contexts] * probabilities[-1][above.suffixes])
    weights.append(np.ones(len(counted[-1].keys)))
    return NGramModel(words, _compact(counted, kept, probabilities, weights, len(words)))


def discounts(adjusted: np.ndarray) -> tuple[float, float, float]:
    """What is taken from counts of 1, of 2, and of more: Chen and Goodman's equation 17."""
    n1, n2, n3, n4 = (int(np.sum(adjusted == count)) for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return _FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 <= amount <= count for count, amount in enumerate(found, 1)) else _FALLBACK


def _amounts(adjusted: np.ndarray) -> np.ndarray:
    """[N] float64, what is taken from each count."""
    return np.array([0.0, *discounts(adjusted)])[np.minimum(adjusted, 3)]


def _vocabulary(sentences: Iterable[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """The words, by falling frequency and then by spelling; and [T] int64, the text."""
    ids: dict[str, int] = {}
    text = array("q")
    for sentence in sentences:
        text.append(-1)
        text.extend([ids.setdefault(word, len(ids)) for word in sentence])
        text.append(-2)
    if not ids:
        raise UserError("There is no text to estimate an n-gram model from.")
    tokens = np.array(text, np.int64)
    times = np.bincount(tokens[tokens >= 0], minlength=len(ids))
    counts = {word: int(times[id_]) for word, id_ in ids.items() if word not in SPECIAL}
    words = [*SPECIAL, *sorted(counts, key=lambda word: (-counts[word], word))]
    place = {word: id_ for id_, word in enumerate(words)}
    # A text that spells out a special word means the characters, which then are an unknown word.
    renamed = np.array([*(UNK if word in SPECIAL else place[word] for word in ids), EOS, BOS], np.int64)
    return words, renamed[tokens]  # -2 and -1 count from the end


def _count(tokens: np.ndarray, vocabulary: int, order: int) -> list[_Counted]:
    """Count the n-grams of every length up to ``order``."""
    position = np.arange(len(tokens)) - np.maximum.accumulate(np.where(tokens == BOS, np.arange(len(tokens)), 0))
    found: list[_Counted] = []
    rows = tokens  # of the n-gram that ends at each token
    keys, counts = np.arange(vocabulary, dtype=np.uint64), np.bincount(tokens, minlength=vocabulary)
    suffixes, initial = np.zeros(vocabulary, np.int64), np.arange(vocabulary) == BOS
    for n in range(2, order + 1):
        there = np.flatnonzero(position >= n - 1)
        before = rows[there - 1]
        made = before.astype(np.uint64) * np.uint64(vocabulary) + tokens[there].astype(np.uint64)
        longer, first, inverse, times = np.unique(made, return_index=True, return_inverse=True, return_counts=True)
        endings = rows[there[first]]
        follows = np.bincount(endings, minlength=len(keys))
        found.append(_Counted(keys, counts, np.where(initial, counts, follows), suffixes))
        keys, counts, suffixes, initial = longer, times, endings, initial[before[first]]
        rows = np.full(len(tokens), -1, np.int64)
        rows[there] = inverse
    return [*found, _Counted(keys, counts, counts, suffixes)]


def _unigrams(counted: _Counted) -> np.ndarray:
    """[V] float64: of each word, what its adjusted count gives, and an even share of the rest; none of ``<s>``."""
    adjusted = counted.adjusted.copy()
    adjusted[BOS] = 0
    share = (adjusted - _amounts(adjusted)) / adjusted.sum()
    even = (1.0 - share.sum()) / (len(adjusted) - 1)
    result = share + even
    result[BOS] = 0.0
    return result


def _compact(
    counted: list[_Counted],
    kept: list[np.ndarray],
    probabilities: list[np.ndarray],
    weights: list[np.ndarray],
    size: int,
) -> list[Order]:
    """The n-grams that are kept, their contexts counted anew."""
    orders: list[Order] = []
    renumbered = np.arange(size)
    for n, (all_, keep, p, weight) in enumerate(zip(counted, kept, probabilities, weights, strict=True), 1):
        keys = all_.keys[keep]
        if n > 1:
            before, last = np.divmod(keys, np.uint64(size))
            keys = renumbered[before.astype(np.int64)].astype(np.uint64) * np.uint64(size) + last
        with np.errstate(divide="ignore"):
            logs = np.maximum(np.log10(p[keep]), _NEVER).astype(np.float32)
        orders.append(Order(keys, logs, np.log10(weight[keep]).astype(np.float32)))
        renumbered = np.cumsum(keep) - 1
    return orders
