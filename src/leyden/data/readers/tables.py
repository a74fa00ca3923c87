"""The child process behind :mod:`leyden.data.readers.columns`: rows of Parquet and Arrow files as Python objects.

A file of a few hundred bytes can stand for gigabytes: by dictionaries, runs, prefixes, lists of nothing. What a library
reserves for it cannot be foreseen, so it is read in a process with limits, which loads this file alone. What it makes
of a file is cut by what it costs before anything is copied into Python's objects.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

pc: Any = pyarrow.compute  # its functions are made when it is imported, unseen by type checkers

_ANSWER_BYTES = 8 << 20
"""What rows that are answered at once cost, unless a single one costs more."""
_VALUE_BYTES = 48
"""What a Python object costs beside its content, about."""

Row = dict[str, Any] | tuple[str, str]
"""The columns of a row; or reason and detail why it is set aside."""


Look = tuple[list[tuple[str, str, bool, bool]], list[tuple[int, int]]]
"""Of each column its name, its type in words, whether it is text, and whether it holds bytes (pictures, sound); of each
row group its rows, and the bytes that it is stored in."""

Rows = tuple[list[Row], int, bool]
"""Some rows of a file, the bytes of their contents, and whether there are none any more."""


class Tables:
    """Reads files; the place in the last one is kept, so that going on with it costs nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._key: tuple[Any, ...] = ()
        self._rows: Iterator[tuple[list[Row], int]] = iter(())

    def __call__(self, action: str, *arguments: Any) -> Look | Rows:
        """One of ``look`` and ``rows``. What crosses to the parent are plain objects, since this file's classes cannot.

        Raises:
            OSError: the disk's, with its number.
            ValueError: the library cannot read the file.
        """
        try:
            return self.look(*arguments) if action == "look" else self.rows(*arguments)
        except MemoryError:
            raise
        except Exception as error:
            self._key = ()
            if isinstance(error, OSError) and error.errno is not None:
                raise OSError(error.errno, error.strerror or str(error)) from None
            raise ValueError(f"{error or type(error).__name__}"[:400]) from None

    def look(self, path: str, format: str) -> Look:
        """What a file says of itself."""
        if format == "parquet":
            with pq.ParquetFile(path) as file:
                meta, schema = file.metadata, file.schema_arrow
                of_group = [meta.row_group(number) for number in range(meta.num_row_groups)]
            groups = [
                (group.num_rows, sum(group.column(c).total_compressed_size for c in range(meta.num_columns)))
                for group in of_group
            ]
        else:
            with pa.memory_map(path) as source:
                schema, groups = _reader(source).schema, []
        return [(f.name, str(f.type)[:200], _is_text(f.type), _holds_bytes(f.type)) for f in schema], groups

    def rows(
        self, path: str, format: str, group: int, columns: tuple[str, ...], text: str, step: int, first: int
    ) -> Rows:
        """Some rows from row ``first`` on (0 is the first of the row group, or of an Arrow file).

        Args:
            path, format: of the file.
            group: the row group of a Parquet file.
            columns: those to read.
            text: the column whose values are documents.
            step: rows that are decoded at once, at most; fewer take less memory, and more time.
            first: the row to begin with.
        """
        key = (path, format, group, columns, text, step)
        if (*key, first) != self._key:
            batches = _parquet(path, group, list(columns), step) if format == "parquet" else _arrow(path, columns, step)
            self._rows = self._from(batches, first, text)
        self._key = ()
        found = next(self._rows, None)
        if found is None:
            return [], 0, True
        self._key = (*key, first + len(found[0]))
        return *found, False

    def _from(self, batches: Iterator[tuple[Any, str]], first: int, text: str) -> Iterator[tuple[list[Row], int]]:
        """The rows of batches, but for those before ``first``; a batch with a fault gives its reason for each row."""
        for batch, fault in batches:
            left = batch.num_rows - first
            if left > 0 and fault:
                yield [(fault, "its values contradict each other")] * left, 0
            elif left > 0:
                yield from self._parts(batch.slice(first), text)
            first = max(-left, 0)

    def _parts(self, batch: Any, text: str) -> Iterator[tuple[list[Row], int]]:
        """A batch in parts that cost little each; a row that costs too much is set aside before it is copied."""
        costs = sum((_costs(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64))
        too_long = costs > 8 * self._limit + (1 << 20)
        if text in batch.schema.names and _is_text(batch.schema.field(text).type):
            too_long |= _sizes(batch.column(text)) > self._limit
        costs[too_long] = 0
        contents = sum((_costs(column, 0) for column in batch.columns), np.zeros(batch.num_rows, np.int64))
        contents[too_long] = 0
        start = 0
        while start < batch.num_rows:
            ahead = np.cumsum(costs[start : start + 4096])
            end = start + max(int(np.searchsorted(ahead, _ANSWER_BYTES, side="right")), 1)
            rows: list[Row] = []
            for at in range(start, end):
                if too_long[at] and start < at:
                    rows += _python(batch.slice(start, at - start))
                if too_long[at]:
                    rows.append(("too long", f"more than {self._limit:,} bytes"))
                    start = at + 1
            rows += _python(batch.slice(start, end - start)) if start < end else []
            yield rows, int(contents[end - len(rows) : end].sum())
            start = end


def make(limit: int) -> Tables:
    """What answers calls; no value of more than ``limit`` bytes becomes an object."""
    pa.set_memory_pool(pa.system_memory_pool())  # the others reserve more than they use
    pa.set_cpu_count(1)
    return Tables(limit)


def _parquet(path: str, group: int, columns: list[str], step: int) -> Iterator[tuple[Any, str]]:
    with pq.ParquetFile(path, buffer_size=1 << 20) as file:
        meta = file.metadata.row_group(group)
        # The sizes are what the file claims: they save steps, and nothing rests on them.
        usual = _ANSWER_BYTES * meta.num_rows // max(meta.total_byte_size, 1)
        step = max(min(step, usual), 1)
        for batch in file.iter_batches(step, row_groups=[group], columns=columns, use_threads=False):
            yield batch, ""


def _arrow(path: str, columns: tuple[str, ...], step: int) -> Iterator[tuple[Any, str]]:
    with pa.memory_map(path) as source:  # what is not packed is not copied
        reader = _reader(source)
        numbers = range(reader.num_record_batches) if hasattr(reader, "num_record_batches") else None
        batches = iter(reader) if numbers is None else map(reader.get_batch, numbers)
        for batch in batches:
            chosen = batch.select(list(columns))
            fault = _fault(chosen)
            for start in range(0, batch.num_rows, step):
                yield chosen.slice(start, step), fault


def _fault(batch: Any) -> str:
    """The reason to set a batch aside: its places lie outside its values, which the library would follow."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        return "" if "UTF8" in str(error) else "corrupt arrow"  # a string that is not UTF-8 costs its row alone
    return ""


def _reader(source: Any) -> Any:
    """Of an Arrow file, or of a stream."""
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: Any) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _holds_bytes(kind: Any) -> bool:
    return _is_bytes(kind) or any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def _sizes(strings: Any) -> np.ndarray:
    """[rows] int64, the bytes of each string."""
    if pa.types.is_dictionary(strings.type):
        sizes = _sizes(strings.dictionary)
        places = strings.indices.fill_null(0).to_numpy(zero_copy_only=False)
        return sizes[places] if len(sizes) else np.zeros(len(strings), np.int64)
    if pa.types.is_run_end_encoded(strings.type):
        strings = pc.run_end_decode(strings)
    return pc.binary_length(strings).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _costs(array: Any, each: int = _VALUE_BYTES) -> np.ndarray:
    """[rows] int64, about what rows cost as Python objects, in bytes; with ``each`` 0, what their contents have."""
    kind, length = array.type, len(array)
    if isinstance(array, pa.ExtensionArray):
        return _costs(array.storage, each)
    if _is_text(kind) or _is_bytes(kind):
        return each + (np.full(length, kind.byte_width) if pa.types.is_fixed_size_binary(kind) else _sizes(array))
    if pa.types.is_struct(kind):
        return sum((_costs(array.field(i), each) for i in range(kind.num_fields)), np.full(length, 2 * each))
    if pa.types.is_fixed_size_list(kind):
        starts = np.arange(array.offset, array.offset + length) * kind.list_size
        return _of_lists(array.values, starts, np.full(length, kind.list_size), each)
    if hasattr(array, "offsets") and hasattr(array, "values"):  # lists, maps, and views of lists
        offsets = np.asarray(array.offsets).astype(np.int64)
        sizes = np.asarray(array.sizes).astype(np.int64) if hasattr(array, "sizes") else np.diff(offsets)
        return _of_lists(array.values, offsets[:length], sizes, each)
    if kind.num_fields or pa.types.is_dictionary(kind):  # unions and what else there may be: the most that it can be
        return np.full(length, each + array.get_total_buffer_size())
    return np.full(length, each)


def _of_lists(values: Any, starts: np.ndarray, sizes: np.ndarray, each: int) -> np.ndarray:
    """[rows] int64, the costs of lists of ``values`` that begin at ``starts``."""
    kind = values.type
    if kind.num_fields == 0 and not (_is_text(kind) or _is_bytes(kind) or pa.types.is_dictionary(kind)):
        return max(each, 1) * (1 + sizes)
    if not len(starts):
        return np.zeros(0, np.int64)
    first, end = int(starts.min()), int((starts + sizes).max())
    ahead = np.concatenate([[0], np.cumsum(_costs(values.slice(first, end - first), each))])
    return each * (1 + sizes) + ahead[starts + sizes - first] - ahead[starts - first]


def _python(batch: Any) -> list[Row]:
    """The rows of a batch; where one cannot be had as Python objects, each is tried alone."""
    try:
        simple = _simple(batch)
        try:
            return list(simple.to_pylist(maps_as_pydicts="strict"))
        except KeyError:  # of a map that has one key twice: pairs keep both
            return list(simple.to_pylist())
    except MemoryError:
        raise
    except Exception as error:  # a writer may put anything into a column: what is no UTF-8, or no date
        if batch.num_rows > 1:
            return [row for at in range(batch.num_rows) for row in _python(batch.slice(at, 1))]
        if isinstance(error, UnicodeDecodeError):
            return [("not UTF-8", error.reason)]
        return [("unreadable value", f"{error or type(error).__name__}"[:400])]


def _simple(batch: Any) -> Any:
    """Times to microseconds: Python's know no less."""
    schema = pa.schema([pa.field(f.name, _python_type(f.type)) for f in batch.schema])
    return batch if schema.types == batch.schema.types else batch.cast(schema, safe=False)


def _python_type(kind: Any) -> Any:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_list(kind):
        return pa.list_(_python_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _python_type(f.type)) for f in kind])
    return kind
