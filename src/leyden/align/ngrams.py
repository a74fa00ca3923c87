"""How much of a text has been said before, by n-grams of words."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from leyden.data.dedup.normalisation import normalised
from leyden.data.dedup.windows import shingle_sets


def ngram_sets(texts: Sequence[str], words: int) -> list[np.ndarray]:
    """Of each text its different n-grams, [S] uint64 hashes, sorted; a shorter text is one n-gram, an empty one none.

    Args:
        texts: compared without case and punctuation, as near-duplicates of documents are.
        words: of an n-gram.
    """
    if not texts:
        return []
    hashes, offsets = shingle_sets(normalised(pa.array(texts, pa.large_string())), words)
    return [hashes[begin:end] for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]


class Said:
    """The n-grams of what has been kept, by whose text each came first."""

    def __init__(self) -> None:
        self._owners: dict[int, int] = {}

    def share(self, ngrams: np.ndarray) -> tuple[float, int | None]:
        """The share of n-grams that were said before, and which text says most of them; of nothing 0 and None."""
        owners = [self._owners[ngram] for ngram in ngrams.tolist() if ngram in self._owners]
        if not owners:
            return 0.0, None
        return len(owners) / len(ngrams), max(set(owners), key=lambda owner: (owners.count(owner), -owner))

    def keep(self, ngrams: np.ndarray, owner: int) -> None:
        """Add those of a text that is kept."""
        for ngram in ngrams.tolist():
            self._owners.setdefault(ngram, owner)
