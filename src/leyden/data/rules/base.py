"""What all rules share: which documents they judge, and how a measured value meets its threshold."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from leyden.data.documents import Documents
from leyden.data.rules.analysis import Analysis, chunks
from leyden.data.stage import Stage


@dataclass(frozen=True)
class Limit:
    """A measured value of each document, and what is allowed.

    Attributes:
        name: what is measured; becomes the reason.
        values: [D] float64; NaN where the rule has nothing to say.
        least, most: the documents below or above are dropped; those at a threshold are kept.
        found: [D] what was found, in place of the value in the detail.
        allowed: what is allowed, in place of the threshold in the detail.
    """

    name: str
    values: np.ndarray
    least: float = -math.inf
    most: float = math.inf
    found: Sequence[str] | None = None
    allowed: str = ""

    def broken(self) -> np.ndarray:
        """[D] bool, the documents to drop."""
        return (self.values < self.least) | (self.values > self.most)

    def detail(self, row: int) -> str:
        """The value of a document and the threshold that it breaks."""
        value = self.values[row]
        most = f"at most {self.most:.10g}" if self.most else "none"
        bound = f"at least {self.least:.10g}" if value < self.least else most
        return f"{self.found[row] if self.found else f'{value:.6g}'}; {self.allowed or f'{bound} is allowed'}"


class RuleStage(Stage):
    """A stage that can be told which documents are its business, so that one recipe holds prose, code and dialogues.

    A document that is not chosen goes on as it is.
    """

    TITLE: ClassVar[str]
    """What its reasons begin with."""

    sources: tuple[str, ...] = ()
    """Judge only documents of these sources: shell patterns (``web``, ``*.md``) of their ``source``; empty: of all."""
    except_sources: tuple[str, ...] = ()
    """Leave documents of these sources alone; shell patterns."""
    languages: tuple[str, ...] = ()
    """Judge only documents of these languages (ISO 639-1; as the source or a ``language`` stage says); empty: of all.
    With this set, documents whose language is not known are left alone."""

    def chosen(self, documents: Documents) -> np.ndarray:
        """[D] bool, the documents to judge."""
        chosen = np.ones(len(documents), bool)
        if self.sources or self.except_sources:
            sources = documents.column("source")
            verdict = {source: self._covers(source or "") for source in set(sources)}
            chosen &= np.array([verdict[source] for source in sources], bool)
        if self.languages:
            chosen &= np.array([language in self.languages for language in documents.column("language")], bool)
        return chosen

    def _covers(self, source: str) -> bool:
        inside = not self.sources or any(fnmatchcase(source, pattern) for pattern in self.sources)
        return inside and not any(fnmatchcase(source, pattern) for pattern in self.except_sources)

    def limits(self, analysis: Analysis) -> list[Limit]:
        """What is measured of each text, in the order in which the rules are asked."""
        raise NotImplementedError

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Drop what breaks a limit; the first one broken is the reason."""
        reasons, details = empty_verdicts(len(documents))
        for rows, texts in self.chosen_chunks(documents):
            self.judge(self.limits(Analysis(texts)), rows, reasons, details)
        return documents.drop(reasons, details)

    def chosen_chunks(self, documents: Documents) -> Iterator[tuple[np.ndarray, list[str]]]:
        """The chosen documents in groups to be analysed together: [C] int64, their places, and their texts."""
        rows, texts = np.flatnonzero(self.chosen(documents)), documents.texts()
        done = 0
        for chunk in chunks([texts[row] for row in rows]):
            yield rows[done : done + len(chunk)], chunk
            done += len(chunk)

    def judge(self, limits: Sequence[Limit], rows: np.ndarray, reasons: list, details: list) -> None:
        """Write the reason and detail of each document that breaks a limit, the first one.

        Args:
            limits: of D documents.
            rows: [D] int64, their places in ``reasons`` and ``details``.
        """
        for limit in limits:
            for index in np.flatnonzero(limit.broken()):
                row = rows[index]
                if reasons[row] is None:
                    reasons[row] = f"{self.TITLE}: {limit.name}"
                    details[row] = limit.detail(int(index))


def rewrite_chosen(documents: Documents, chosen: np.ndarray, function: Callable[[list[str]], list[str]]) -> Documents:
    """:meth:`Documents.rewrite` of the documents in ``chosen`` [D] bool alone."""
    if chosen.all():
        return documents.rewrite(function)
    rewritten = Documents(documents.table.filter(pa.array(chosen))).rewrite(function)
    rest = documents.table.filter(pa.array(~chosen))
    order = np.argsort(np.concatenate([np.flatnonzero(chosen), np.flatnonzero(~chosen)]))
    return Documents(pa.concat_tables([rewritten.table, rest]).take(order), documents.first_row)


def empty_verdicts(num_documents: int) -> tuple[list[str | None], list[str | None]]:
    """Reasons and details that keep everything."""
    return [None] * num_documents, [None] * num_documents


def fraction(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """[D] float64: ``part / whole`` [D], NaN where the whole is nothing."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
