"""ARPA files, the text form of n-gram models that other tools read and write (KenLM, SRILM)."""

import gzip
import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.data.label.ngram import SPECIAL, NGramModel, Order


def write_arpa(model: NGramModel, path: Path) -> None:
    """Write a model; packed where the name ends in ``.gz``."""
    with atomic_file(path) as part, _open(part, "w", packed=path.suffix == ".gz") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(order.keys)}\n" for n, order in enumerate(model.orders, 1))
        for n in range(1, len(model.orders) + 1):
            longest = n == len(model.orders)
            file.write(f"\n\\{n}-grams:\n")
            for words, log, backoff in model.n_grams(n):
                file.write(f"{log:.7g}\t{' '.join(words)}{'' if longest else f'{chr(9)}{backoff:.7g}'}\n")
        file.write("\n\\end\\\n")


def read_arpa(path: Path) -> NGramModel:
    """Read a model.

    Raises:
        UserError: the file cannot be read, is no ARPA file, or lacks a special word or the beginning of an n-gram.
    """
    try:
        with _open(path, "r", packed=path.suffix == ".gz") as file:
            sections = dict(_sections(file))
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an ARPA file: {error}.") from None
    if not sections or sorted(sections) != list(range(1, len(sections) + 1)):
        raise UserError(f"{path} is no ARPA file: it should have sections \\1-grams:, \\2-grams: and so on.")
    spelled = {words[0]: (log, backoff) for words, log, backoff in sections[1]}
    missing = [word for word in SPECIAL if word not in spelled]
    if missing:
        raise UserError(f"{path} has no unigram {' '.join(missing)}; a model needs {' '.join(SPECIAL)}.")
    vocabulary = [*SPECIAL, *(word for word in spelled if word not in SPECIAL)]
    logs, backoffs = (np.array([spelled[word][i] for word in vocabulary], np.float32) for i in (0, 1))
    orders = [Order(np.arange(len(vocabulary), dtype=np.uint64), logs, backoffs)]
    ids = {word: id_ for id_, word in enumerate(vocabulary)}
    rows: dict[tuple[int, ...], int] = {(id_,): id_ for id_ in range(len(vocabulary))}
    for n in range(2, len(sections) + 1):
        try:
            tuples = [tuple(ids[word] for word in words) for words, _, _ in sections[n]]
            keys = np.array([rows[words[:-1]] * len(vocabulary) + words[-1] for words in tuples], np.uint64)
        except KeyError as error:
            raise UserError(f"{path}: an n-gram of {n} words has a beginning that is not there: {error}.") from None
        order = np.argsort(keys)
        if any(a == b for a, b in pairwise(keys[order].tolist())):
            raise UserError(f"{path}: an n-gram of {n} words is there twice.")
        logs, backoffs = (np.array([line[i] for line in sections[n]], np.float32)[order] for i in (1, 2))
        orders.append(Order(keys[order], logs, backoffs))
        rows = {tuples[index]: row for row, index in enumerate(order.tolist())}
    return NGramModel(vocabulary, orders)


_Line = tuple[tuple[str, ...], float, float]


def _sections(file: TextIO) -> Iterator[tuple[int, list[_Line]]]:
    """The n-grams of each length: words, logarithm, backoff."""
    n, lines = 0, []
    for raw in file:
        line = raw.strip(" \r\n")
        if line.startswith("\\") and line.endswith(("-grams:", "\\")):
            if n:
                yield n, lines
            n, lines = int(line[1:].removesuffix("-grams:")) if line.endswith("-grams:") else 0, []
        elif n and line:
            log, words, *backoff = line.split("\t")
            spelled = tuple(words.split(" "))
            if len(spelled) != n:
                raise ValueError(f"{line!r} is not an n-gram of {n} words")
            lines.append((spelled, float(log), float(backoff[0]) if backoff else 0.0))
    if n:
        raise ValueError("it ends without \\end\\")


def _open(path: Path, mode: str, *, packed: bool) -> Any:
    """A file of text, packed by gzip or not."""
    if not packed:
        return path.open(mode, encoding="utf-8", newline="\n")
    if mode == "r":
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    # Without a name and a date, so that the same model is the same file.
    return io.TextIOWrapper(gzip.GzipFile(path, "wb", mtime=0), encoding="utf-8", newline="\n")
