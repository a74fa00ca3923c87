"""Linear classifiers over words and pairs of words (fastText, arXiv 1607.01759), the same bits whenever trained.

One thread alone trains: with more, fastText's threads write the same weights at once and no two runs agree. With one,
however, fastText fills only the first tenth of its matrix (``DenseMatrix::uniform``, which splits the work into ten
blocks and then does one), and learns on from whatever the memory held: NaN at worst. So it is handed zeroed memory.
"""

import ctypes
import errno
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from leyden.core.config import Config
from leyden.core.files import atomic_file
from leyden.core.log import log_once

_LABEL = "\x01"
"""What labels begin with in fastText's file; taken out of texts, so that no text can name a label."""
_M_PERTURB = -6
"""mallopt's name for what fills memory (malloc.h)."""
_NOT_TEXT = {1: None, 0: None}


class FastTextSettings(Config):
    """How a classifier is trained."""

    dim: int = Field(default=64, ge=1)
    """Of a word's vector; fastText's default is 100."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the labels; fastText's default, 5, is for millions of them."""
    learning_rate: float = Field(default=0.3, gt=0)
    """At the start; falls to 0."""
    word_ngrams: int = Field(default=2, ge=1, le=5)
    """Up to so many words form a feature; 2 is DCLM's (arXiv 2406.11794, section 4.4)."""
    min_count: int = Field(default=2, ge=1)
    """Rarer words are left out (they still count in pairs)."""
    buckets: int = Field(default=1 << 18, ge=1)
    """Rows that pairs of words share by hash; 2 million, fastText's default, make a model of 832 MB, these of 67."""
    characters: int = Field(default=20_000, ge=1)
    """Of a document that are read, from its beginning."""
    seed: int = 0
    """Of the vectors at the start."""


class FastText:
    """A trained classifier.

    Args:
        path: of a model file.
    """

    def __init__(self, path: Path, characters: int) -> None:
        import fasttext

        self._model: Any = fasttext.load_model(str(path))
        self._characters = characters
        self.labels: list[str] = sorted(label.removeprefix(_LABEL) for label in self._model.get_labels())

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[D, K] float64, the probability of each of ``labels`` [K] for each text."""
        lines = [line_of(text, self._characters) for text in texts]
        place = {_LABEL + label: column for column, label in enumerate(self.labels)}
        result = np.zeros((len(lines), len(place)))
        if lines:
            named, values = self._model.predict(lines, k=-1)
            for row, (names, numbers) in enumerate(zip(named, values, strict=True)):
                result[row, [place[name] for name in names]] = numbers
        return result / result.sum(axis=1, keepdims=True).clip(1e-9)  # fastText's sum to a little over 1


def line_of(text: str, characters: int) -> str:
    """A text as fastText reads it: the beginning, in lower case, on one line."""
    return " ".join(text[:characters].lower().translate(_NOT_TEXT).split())


def train(path: Path, texts: Sequence[str], labels: Sequence[str], settings: FastTextSettings) -> None:
    """Train a classifier and write it to ``path``; the order of the texts matters, and should be a shuffled one.

    Args:
        texts: [D].
        labels: [D], without spaces.
    """
    import fasttext

    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.with_suffix(".txt")
    with lines.open("w", encoding="utf-8") as file:
        for text, label in zip(texts, labels, strict=True):
            file.write(f"{_LABEL}{label} {line_of(text, settings.characters)}\n")
    with _zeroed_memory():
        model: Any = fasttext.train_supervised(
            input=str(lines),
            label=_LABEL,
            dim=settings.dim,
            epoch=settings.epochs,
            lr=settings.learning_rate,
            wordNgrams=settings.word_ngrams,
            minCount=settings.min_count,
            bucket=settings.buckets,
            seed=settings.seed,
            thread=1,
            verbose=0,
        )
    with atomic_file(path) as part:
        model.save_model(str(part))
        _check_saved(model, part)
    lines.unlink()


def _check_saved(model: Any, path: Path) -> None:
    """See that the file ends with the last matrix, since fastText looks at no error of the disk.

    It is not read by fastText itself, which never ends on some files that are cut off.

    Raises:
        OSError: the disk is full.
    """
    matrix = np.ascontiguousarray(model.get_output_matrix(), "<f4")
    ending = np.array(matrix.shape, "<i8").tobytes() + matrix.tobytes()
    with path.open("rb") as file:
        file.seek(-min(len(ending), file.seek(0, os.SEEK_END)), os.SEEK_END)
        if file.read() != ending:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextmanager
def _zeroed_memory() -> Iterator[None]:
    """Within, memory that the C library gives out is zero."""
    perturb: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    if perturb is None:
        log_once(__name__, "this C library has no mallopt: fastText classifiers may differ from run to run")
        yield
        return
    perturb(_M_PERTURB, 0xFF)  # glibc fills what it gives out with the complement of this byte
    try:
        yield
    finally:
        perturb(_M_PERTURB, 0)


@functools.lru_cache(maxsize=4)
def load(path: Path, characters: int, changed_ns: int) -> FastText:
    """The classifier of a file, kept in memory while the file stays as it is."""
    return FastText(path, characters)


def classify(path: Path, texts: Sequence[str], settings: FastTextSettings) -> tuple[list[str], np.ndarray]:
    """Labels [K], and [D, K] float64, their probabilities, by the classifier of a file."""
    model = load(path, settings.characters, path.stat().st_mtime_ns)
    return model.labels, model(texts)
