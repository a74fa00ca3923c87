"""Documents that hold parts of evaluation sets, found by n-grams of words (Brown et al. 2020, appendix C)."""

import functools
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from leyden.core.errors import UserError
from leyden.data.dedup.normalisation import normalised, texts_of
from leyden.data.dedup.runs import groups
from leyden.data.dedup.windows import hash_strings, inner_windows, window_hashes, words_of
from leyden.data.documents import Documents
from leyden.data.stage import Stage

_SCORE = "contamination"
_EXCERPT_WORDS = 40


class Contamination(Stage):
    """Drop documents, or mark them, that share n-grams of words with evaluation sets.

    Words are compared without case and punctuation, but with symbols, operators and the marks inside numbers
    (:func:`leyden.data.dedup.normalisation.normalised`); a character is a word in scripts without spaces. An item of a
    set that has fewer words than an n-gram, but ``min_words`` or more, is searched for as a whole. The share of an item
    that a document holds is that of the item's different n-grams; ``scores["contamination"]`` is the greatest share.
    """

    VERSION: ClassVar[int] = 2

    kind: Literal["contamination"] = "contamination"
    sets: tuple[Path, ...] = Field(min_length=1)
    """Evaluation sets: ``.jsonl`` or Parquet (an item a row), any other file is text (an item a line, its
    field ``text``)."""
    fields: tuple[str, ...] = ()
    """Fields of an item that are searched for, each by itself. None: every field that is a string."""
    ngram_words: int = Field(13, ge=1)
    """Words in an n-gram (GPT-3: 13)."""
    min_words: int = Field(8, ge=1)
    """Shorter items are too common to be searched for (GPT-3's least n-gram: 8)."""
    overlap: float = Field(0.0, ge=0, le=1)
    """The share of an item from which a document is contaminated; 0: one n-gram is enough (GPT-3)."""
    action: Literal["drop", "report"] = "drop"
    """``report`` keeps the documents, with their score."""

    @model_validator(mode="after")
    def _short_items_fit(self) -> Self:
        if self.min_words > self.ngram_words:
            raise ValueError(f"min_words = {self.min_words} must not exceed ngram_words = {self.ngram_words}")
        return self

    def files(self) -> tuple[Path, ...]:
        """The evaluation sets.

        Raises:
            UserError: one does not exist.
        """
        for path in self.sets:
            if not path.is_file():
                raise UserError(f"{path}, an evaluation set, does not exist; give files of items.")
        return self.sets

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Score, and drop, the documents that hold enough of an item."""
        changed_ns = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in self.sets)
        index = _index_of(self.sets, self.fields, self.ngram_words, self.min_words, changed_ns)
        words, offsets = words_of(normalised(texts_of(documents)))
        found = index.search(words, offsets)
        shares = np.full(len(documents), np.nan)
        reasons: list[str | None] = [None] * len(documents)
        details: list[str | None] = [None] * len(documents)
        for row, match in found.items():
            shares[row] = match.share
            if self.action == "drop" and match.share >= self.overlap:
                reasons[row] = f"contaminated by {match.set_name}"
                details[row] = str(match)
        return documents.score(_SCORE, shares).drop(reasons, details)


@dataclass(frozen=True)
class Match:
    """The evaluation item that a document holds most of.

    Attributes:
        set_name: the file's name.
        item: which: line or row, from 1, and field.
        share: of the item's different n-grams that the document has.
        first_word, last_word: of the document, from 0, between which they lie, both included.
        excerpt: the words from the first on.
    """

    set_name: str
    item: str
    share: float
    first_word: int
    last_word: int
    excerpt: str

    def __str__(self) -> str:
        where = f"words {self.first_word} to {self.last_word}"
        return f"{self.set_name}, {self.item}: {100 * self.share:.0f} % of its n-grams, {where}: {self.excerpt!r}"


class Index:
    """The n-grams of evaluation items; about 30 bytes each in memory, and the items' words.

    Args:
        items: the set, the place and the text of each.
        ngram_words, min_words: as of the stage.
    """

    def __init__(self, items: list[tuple[str, str, str]], ngram_words: int, min_words: int) -> None:
        self.names = [(set_name, place) for set_name, place, _ in items]
        texts = normalised(pa.array([text for _, _, text in items], pa.large_string()))
        self._words, self._offsets = words_of(texts)
        units, counts = hash_strings(self._words), np.diff(self._offsets)
        lengths = np.minimum(counts, ngram_words)
        self.num_too_short = int((lengths < min_words).sum())
        self._tables: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._totals = np.zeros(len(items), np.int64)
        for length in np.unique(lengths[lengths >= min_words]).tolist():
            starts, owners = inner_windows(self._offsets, length)
            ours = lengths[owners] == length
            starts, owners = starts[ours], owners[ours]
            hashes = window_hashes(units, length)[starts]
            order = np.lexsort((starts, owners, hashes))
            hashes, owners, starts = hashes[order], owners[order], starts[order]
            fresh = np.append(True, (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1]))
            self._tables[length] = hashes[fresh], owners[fresh], starts[fresh]
            self._totals += np.bincount(owners[fresh], minlength=len(items))

    def search(self, words: pa.Array, offsets: np.ndarray) -> dict[int, Match]:
        """The item that each document holds most of, by row; of equal shares the first of the sets.

        Args:
            words: [W] large strings, of all documents.
            offsets: [D+1] int64, where each document's words begin.
        """
        units = hash_strings(words)
        best: dict[int, tuple[float, int, int, int]] = {}
        for length in self._tables:
            rows, ngrams, firsts, lasts = self._ngrams_in(words, units, offsets, length)
            borders = np.flatnonzero(np.diff(rows, prepend=-1, append=-1)).tolist() if len(rows) else []
            for begin, end in itertools.pairwise(borders):
                row, of_row = int(rows[begin]), slice(begin, end)
                found = self._best(length, ngrams[of_row], firsts[of_row], lasts[of_row])
                if row not in best or (found[0], -found[1]) > (best[row][0], -best[row][1]):
                    best[row] = found
        return {row: self._match(words, int(offsets[row]), *found) for row, found in best.items()}

    def _ngrams_in(
        self, words: pa.Array, units: np.ndarray, offsets: np.ndarray, length: int
    ) -> tuple[np.ndarray, ...]:
        """The n-grams of items that documents hold, each once a document, so that no document has more than there are.

        Returns:
            [G] int64 each, sorted: the row, the first entry of the n-gram in its table, where it comes first and last.
        """
        hashes, _, places = self._tables[length]
        starts, rows = inner_windows(offsets, length)
        own = window_hashes(units, length)[starts]
        entry = np.searchsorted(hashes, own)
        hit = np.flatnonzero(hashes[np.minimum(entry, len(hashes) - 1)] == own)
        starts, rows, entry = starts[hit], rows[hit], entry[hit]
        order, fresh = groups(rows, entry)  # stable, so that places rise in each group
        first, last = order[fresh], order[np.append(fresh[1:], True)[: len(fresh)]]
        same = self._same(words, starts[first], places[entry[first]], length)
        return rows[first][same], entry[first][same], starts[first][same], starts[last][same]

    def _same(self, words: pa.Array, starts: np.ndarray, places: np.ndarray, length: int) -> np.ndarray:
        """[H] bool, whether windows of documents and of items have the same words: their hashes are equal."""
        span = np.arange(length)
        ours = words.take(pa.array((starts[:, None] + span).ravel())).to_pylist()
        theirs = self._words.take(pa.array((places[:, None] + span).ravel())).to_pylist()
        equal = np.fromiter((a == b for a, b in zip(ours, theirs, strict=True)), bool, len(ours))
        return np.all(equal.reshape(-1, length), axis=1)

    def _best(
        self, length: int, ngrams: np.ndarray, firsts: np.ndarray, lasts: np.ndarray
    ) -> tuple[float, int, int, int]:
        """Of the n-grams [G] of one document, the item that has most of them: share, item, first and last word."""
        hashes, owners, _ = self._tables[length]
        counts = np.searchsorted(hashes, hashes[ngrams], side="right") - ngrams
        which = np.repeat(np.arange(len(ngrams)), counts)
        entries = ngrams[which] + np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        items, place = np.unique(owners[entries], return_inverse=True)
        shares = np.bincount(place) / self._totals[items]
        most = int(np.argmax(shares))
        mine = which[place == most]
        return float(shares[most]), int(items[most]), int(firsts[mine].min()), int(lasts[mine].max()) + length - 1

    def _match(self, words: pa.Array, begin: int, share: float, item: int, first: int, last: int) -> Match:
        excerpt = " ".join(words.slice(first, min(last - first + 1, _EXCERPT_WORDS)).to_pylist())
        return Match(*self.names[item], share, first - begin, last - begin, excerpt)


@functools.lru_cache(maxsize=1)
def _index_of(
    sets: tuple[Path, ...], fields: tuple[str, ...], ngram_words: int, min_words: int, changed_ns: tuple[int, ...]
) -> Index:
    """The index of evaluation sets, made once a process; ``changed_ns`` tells new files from old ones."""
    return Index([item for path in sets for item in _items(path, fields)], ngram_words, min_words)


def _items(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """The set, the place and the text of every item of a file.

    Raises:
        UserError: the file cannot be read, a line is not a JSON object, or a field is missing everywhere.
    """
    found = False
    try:
        for place, row in _rows(path):
            for field in fields or row:
                if isinstance(row.get(field), str):
                    found = True
                    yield path.name, f"{place}, {field}", row[field]
    except (OSError, UnicodeDecodeError, ValueError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read as an evaluation set: {error}.") from None
    if not found:
        asked = f" in its fields {', '.join(fields)}" if fields else ""
        raise UserError(f"{path} has no text{asked}; name fields that it has as strings.")


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if path.suffix != ".jsonl":
                yield f"line {number}", {"text": line}
            elif line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is not a JSON object")
                yield f"line {number}", row
