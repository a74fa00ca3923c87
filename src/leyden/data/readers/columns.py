"""Files of columns: Parquet, and the Arrow files of a saved Hugging Face dataset."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leyden.data.readers.nested import TURNS
from leyden.data.readers.pieces import Found, Piece
from leyden.data.readers.problem import Problem
from leyden.data.readers.rows import columns_to_read, document_of
from leyden.data.readers.settings import ReadSettings

_BATCH_BYTES = 8 << 20


def row_group_ranges(path: Path, size: int, shard_bytes: int) -> Iterator[tuple[int, int, int | None]]:
    """Ranges of row groups of up to ``shard_bytes``, or of one group: bytes, first group, and last (excluded).

    A file whose footer cannot be read is one range: reading it will say so.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            meta = file.metadata
            # The size of a group as it is stored; meta.row_group(i).total_byte_size is that of its values.
            sizes = [
                sum(meta.row_group(i).column(c).total_compressed_size for c in range(meta.num_columns))
                for i in range(meta.num_row_groups)
            ]
    except (pa.ArrowException, OSError):
        yield size, 0, None
        return
    start = held = 0
    for group, group_bytes in enumerate(sizes):
        if group > start and held + group_bytes > shard_bytes:
            yield held, start, group
            start, held = group, 0
        held += group_bytes
    yield held, start, len(sizes)


def read_parquet(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """A document a row, named by the row's number in the file (``:7``); a row group that is broken is set aside."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(piece.source.path, buffer_size=1 << 20) as file:
            meta = file.metadata
            columns = _columns(file.schema_arrow, settings)
            first = 1 + sum(meta.row_group(group).num_rows for group in range(piece.start))
            for group in range(piece.start, meta.num_row_groups if piece.end is None else piece.end):
                try:
                    yield from _group(file, group, first, columns, piece, settings)
                except (pa.ArrowException, OSError) as error:
                    yield f"row group {group}", _corrupt("parquet", error)
                first += meta.row_group(group).num_rows
    except (pa.ArrowException, OSError) as error:
        raise _corrupt("parquet", error) from None


def _group(
    file: Any, group: int, first: int, columns: list[str], piece: Piece, settings: ReadSettings
) -> Iterator[Found]:
    """The rows of one row group, in batches of about :data:`_BATCH_BYTES`."""
    meta = file.metadata.row_group(group)
    rows = max(min(_BATCH_BYTES * meta.num_rows // max(meta.total_byte_size, 1), 1024), 1)
    for batch in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
        yield from _documents(batch, first, piece, settings)
        first += batch.num_rows


def read_arrow(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """A document a row of a stream or file of Arrow batches, named by the row's number."""
    import pyarrow as pa

    try:
        with pa.OSFile(str(piece.source.path)) as source:
            first = 1
            columns: list[str] | None = None
            for batch in _arrow_batches(source):
                columns = _columns(batch.schema, settings) if columns is None else columns
                for start in range(0, batch.num_rows, 256):
                    yield from _documents(batch.slice(start, 256).select(columns), first, piece, settings)
                    first += min(256, batch.num_rows - start)
    except (pa.ArrowException, OSError) as error:
        raise _corrupt("arrow", error) from None


def _corrupt(what: str, error: Exception) -> Problem:
    """``error`` as a Problem.

    Raises:
        OSError: it is one of the disk, not of the file's content.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return Problem(f"corrupt {what}", str(error)[:400])


def _arrow_batches(source: Any) -> Iterator[Any]:
    import pyarrow as pa

    if source.read(6) == b"ARROW1":
        file = pa.ipc.open_file(source)
        yield from (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        source.seek(0)
        yield from pa.ipc.open_stream(source)


def _columns(schema: Any, settings: ReadSettings) -> list[str]:
    """The columns to read, without those that hold bytes (pictures, sound)."""
    import pyarrow as pa

    names = columns_to_read(schema.names, settings)
    if settings.text in names and settings.rows != "messages":
        kind = schema.field(settings.text).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise Problem(f'"{settings.text}" is not a string', f"a column of type {kind}")
    return [name for name in names if not _holds_bytes(schema.field(name).type)]


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return is_bytes or any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def _documents(batch: Any, first: int, piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    for number, row in enumerate(_rows(batch), first):
        try:
            if isinstance(row, Problem):
                raise row
            yield f"row {number}", document_of(row, piece.source, f":{number}", settings)
        except Problem as problem:
            yield f"row {number}", problem


def _rows(batch: Any) -> Iterator[dict[str, Any] | Problem]:
    """The rows of a batch; where one cannot be had as Python objects, each is tried alone."""
    try:
        for row in _simple(batch).to_pylist(maps_as_pydicts="strict"):
            yield {name: _filled(value) if name in TURNS else value for name, value in row.items()}
    except (ValueError, OverflowError, KeyError) as error:
        if batch.num_rows > 1:
            for row in range(batch.num_rows):
                yield from _rows(batch.slice(row, 1))
        elif isinstance(error, UnicodeDecodeError):  # a writer may put anything into a column of strings
            yield Problem("not UTF-8", error.reason)
        else:
            yield Problem("unreadable value", str(error))


def _filled(value: Any) -> Any:
    """A turn without its fields that are null: a column gives all fields to all turns, and to all calls of tools."""
    if isinstance(value, dict):
        return {name: _filled(item) for name, item in value.items() if item is not None}
    return [_filled(item) for item in value] if isinstance(value, list) else value


def _simple(batch: Any) -> Any:
    """Times to microseconds: Python's know no less."""
    import pyarrow as pa

    fields = [
        pa.field(f.name, pa.timestamp("us", f.type.tz) if pa.types.is_timestamp(f.type) else f.type)
        for f in batch.schema
    ]
    schema = pa.schema(fields)
    return batch if schema.equals(batch.schema) else batch.cast(schema, safe=False)
