"""Documents in Parquet files: what stands between stages. A row group is a batch, and bounds memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import pyarrow.parquet as pq

from leyden.core.files import atomic_file
from leyden.data.documents import SCHEMA, Document, Documents

BATCH_BYTES = 8 << 20
"""Text bytes after which a batch is closed; one document can be larger."""
BATCH_DOCUMENTS = 4096
"""Documents after which it is closed as well."""


class DocumentsWriter:
    """Batches to one Parquet file, which is there whole once :meth:`close` returns.

    Use as a context manager: an error leaves no file. A batch becomes a row group.
    """

    def __init__(self, path: Path) -> None:
        self._file = atomic_file(path)

    def __enter__(self) -> Self:
        self._writer = pq.ParquetWriter(self._file.__enter__(), SCHEMA, compression="zstd")
        return self

    def write(self, documents: Documents) -> None:
        """Append a batch."""
        if len(documents):
            self._writer.write_table(documents.table, row_group_size=len(documents))

    def __exit__(self, *error: object) -> None:
        try:
            self._writer.close()
        finally:
            self._file.__exit__(*error)  # pyright: ignore[reportArgumentType]


def read_batches(path: Path) -> Iterator[Documents]:
    """The batches of a file that :class:`DocumentsWriter` wrote."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield Documents(file.read_row_group(group).cast(SCHEMA))


def batches(documents: Iterable[Document]) -> Iterator[Documents]:
    """Single documents in batches of bounded size."""
    return map(Documents.of, grouped(documents, BATCH_BYTES, BATCH_DOCUMENTS))


def grouped(documents: Iterable[Document], characters: int, at_most: int | None = None) -> Iterator[list[Document]]:
    """Documents in runs, each closed by the one that takes it to so many ``characters``, or ``at_most`` documents."""
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text) + sum(len(message.content) for message in document.messages)
        if size >= characters or len(group) == at_most:
            yield group
            group, size = [], 0
    if group:
        yield group
