"""Documents in Parquet files: what stands between stages. A row group is a batch, and bounds memory."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.data.documents import SCHEMA, Document, Documents

BATCH_BYTES = 8 << 20
"""Text bytes after which a batch is closed; one document can be larger."""
BATCH_DOCUMENTS = 4096
"""Documents after which it is closed as well."""


class DocumentsWriter:
    """Batches to one Parquet file, which is there whole once the context ends; an error leaves no file.

    A batch becomes a row group.

    Raises:
        UserError: the disk is full, or fails in another way.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            part = stack.enter_context(atomic_file(self._path))
            self._writer = stack.enter_context(_writing(part))
            self._stack = stack.pop_all()
        return self

    def write(self, documents: Documents) -> None:
        """Append a batch."""
        if len(documents):
            self._writer.write_table(documents.table, row_group_size=len(documents))

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


@contextmanager
def _writing(path: Path) -> Iterator[pq.ParquetWriter]:
    """A writer whose file is closed whatever happens; its footer is written only where nothing went wrong before."""
    writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
    try:
        yield writer
        writer.close()
    finally:
        writer.is_open = False  # else it closes itself once more when it is collected, with the same error
        if writer.file_handle is not None:
            with suppress(OSError):
                writer.file_handle.close()


def read_batches(path: Path) -> Iterator[Documents]:
    """The batches of a file that :class:`DocumentsWriter` wrote, each with its place in the file.

    Raises:
        UserError: it is missing, or no such file.
    """
    first_row = 0
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                batch = Documents(file.read_row_group(group).cast(SCHEMA), first_row)
                first_row += len(batch)
                yield batch
    except FileNotFoundError:
        raise UserError(f"{path} is missing; where it is of a build, run the same command again.") from None
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as documents in Parquet: {error}.") from None


def batches(documents: Iterable[Document]) -> Iterator[Documents]:
    """Single documents in batches of bounded size."""
    return map(Documents.of, grouped(documents, BATCH_BYTES, BATCH_DOCUMENTS))


def grouped(documents: Iterable[Document], characters: int, at_most: int | None = None) -> Iterator[list[Document]]:
    """Documents in runs, each closed by the one that takes it to so many ``characters``, or ``at_most`` documents.

    What they say beside their texts counts, too: a table may have a short text and a long picture of it in letters.
    """
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text) + sum(len(message.content) for message in document.messages)
        size += len(document.id) + len(document.url or "") + _characters(document.metadata)
        if size >= characters or len(group) == at_most:
            yield group
            group, size = [], 0
    if group:
        yield group


def _characters(value: Any) -> int:
    """About how long a value of JSON is, written out."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return 2 + sum(len(name) + _characters(item) for name, item in value.items())
    return 2 + sum(map(_characters, value)) if isinstance(value, list | tuple) else 8
