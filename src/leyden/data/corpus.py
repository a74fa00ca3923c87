"""A corpus: documents without exact duplicates, a part of them held out, and a report of what was read."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.data.documents import Document, Reject
from leyden.data.readers import read_documents
from leyden.data.sources import SourceFile, find_sources, standard_library_sources


@dataclass(frozen=True)
class CorpusReport:
    """What reading a corpus came to; all sizes are of documents that were kept.

    Attributes:
        train_documents, train_bytes: what is trained on, in UTF-8 bytes.
        held_out_documents, held_out_bytes: what is only evaluated on.
        duplicates: documents dropped because another has the same text.
        rejects: how many were set aside, by reason.
        seconds: how long it took.
    """

    train_documents: int
    train_bytes: int
    held_out_documents: int
    held_out_bytes: int
    duplicates: int
    rejects: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, documents held out, and how they came to be."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    report: CorpusReport
    rejects: tuple[Reject, ...]


def build_corpus(paths: Iterable[str | Path] | None = None, *, held_out_fraction: float = 0.02) -> Corpus:
    """Read ``paths`` (None: the standard library's sources), drop exact duplicates, hold some documents out.

    A document is held out by a hash of its text: adding or moving other documents does not change it. One is held out
    at least; where there is only one document, its end is.

    Raises:
        UserError: ``held_out_fraction`` is not between 0 and 1, nothing can be read, or too little to hold out from.
    """
    if not 0 < held_out_fraction < 1:
        raise UserError(f"The held-out fraction must lie between 0 and 1, both excluded; given: {held_out_fraction}.")
    started = time.perf_counter()
    rejects: list[Reject] = []
    sources = _sources(paths, rejects)
    documents: dict[bytes, Document] = {}
    duplicates = 0
    with progress("reading documents", len(sources)) as bar:
        current = ""
        for document in read_documents(sources, rejects):
            digest = hashlib.blake2b(document.text.encode(), digest_size=16).digest()
            duplicates += digest in documents
            documents.setdefault(digest, document)
            if document.source != current:
                current = document.source
                bar.advance()
    train, held_out = _split(documents, held_out_fraction)
    report = CorpusReport(
        train_documents=len(train),
        train_bytes=_num_bytes(train),
        held_out_documents=len(held_out),
        held_out_bytes=_num_bytes(held_out),
        duplicates=duplicates,
        rejects=dict(Counter(reject.reason for reject in rejects).most_common()),
        seconds=time.perf_counter() - started,
    )
    return Corpus(tuple(train), tuple(held_out), report, tuple(rejects))


def _sources(paths: Iterable[str | Path] | None, rejects: list[Reject]) -> list[SourceFile]:
    if paths is None:
        return standard_library_sources()
    sources, skipped = find_sources(paths)
    rejects += skipped
    return sources


def _split(documents: Mapping[bytes, Document], fraction: float) -> tuple[list[Document], list[Document]]:
    """Documents to train on and documents held out, by the first 8 bytes of their digests."""
    if len(documents) == 1:
        return _cut(next(iter(documents.values())), fraction)
    bound = int(fraction * 2**64)
    held_out = {digest for digest in documents if int.from_bytes(digest[:8], "big") < bound}
    held_out = held_out or {min(documents)}
    if len(held_out) == len(documents):
        held_out.remove(max(held_out))
    train = [document for digest, document in documents.items() if digest not in held_out]
    return train, [document for digest, document in documents.items() if digest in held_out]


def _cut(document: Document, fraction: float) -> tuple[list[Document], list[Document]]:
    """Hold out the end of a lone document, from the first line break in the part, if there is one."""
    text = document.text
    if len(text) < 2:
        raise UserError("There is one document, of one character: give text to train on and to hold out.")
    place = min(max(int(len(text) * (1 - fraction)), 1), len(text) - 1)
    line_end = text.find("\n", place - 1, len(text) - 1)
    place = line_end + 1 if line_end >= 0 else place
    head = Document(document.id, text[:place], document.source)
    tail = Document(f"{document.id}#end", text[place:], document.source)
    return [head], [tail]


def _num_bytes(documents: Iterable[Document]) -> int:
    return sum(len(document.text.encode()) for document in documents)
