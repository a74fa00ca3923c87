"""The decisions on clustered documents: one file a shard, which ``apply`` and ``leyden data inspect`` read."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leyden.core.files import atomic_file
from leyden.data.dedup.clusters import offsets_of
from leyden.data.dedup.gathering import Gathered
from leyden.data.dedup.runs import file_name, load_array, save_array
from leyden.data.documents import Documents, pc
from leyden.data.engine import DataEngine

VERDICTS = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("survivor", pa.string()),
        ("number", pa.int64()),
        ("survivor_number", pa.int64()),
        ("jaccard", pa.float32()),
    ]
)
"""One row for each document of a cluster: its row in its shard, its id, the id of the document that stands for it (its
own, if it survives), the numbers of both, and their exact similarity, where it was verified. The documents of all
shards are numbered through; those with one ``survivor_number`` are one cluster. Ids are for people: they may repeat."""


def write_verdicts(
    engine: DataEngine,
    work: Path,
    shards: Sequence[Gathered],
    members: np.ndarray,
    standing: np.ndarray,
    jaccard: np.ndarray | None = None,
) -> None:
    """Write what became of each document of a cluster.

    Args:
        engine: runs one task a shard.
        work: of the stage; ``verdicts/`` is made in it.
        shards: the notes on all documents.
        members: [M] int64, numbers of documents, sorted.
        standing: [M] int64, the number of the document that stands for each.
        jaccard: [M] float32, where it is known.
    """
    save_array(work / "members.npy", members)
    save_array(work / "standing.npy", standing)
    save_array(work / "jaccard.npy", np.full(len(members), np.nan, np.float32) if jaccard is None else jaccard)
    with atomic_file(work / "ids.arrow") as part, pa.OSFile(str(part), "wb") as file:
        schema = pa.schema([("id", pa.string())])
        with pa.ipc.new_file(file, schema) as writer:
            for shard in shards:
                ids = shard.ids()
                writer.write_batch(
                    pa.record_batch([pa.concat_arrays(ids.chunks or [pa.array([], pa.string())])], schema)
                )
    task = functools.partial(_write_of_shard, work, offsets_of(shards))
    mine = [(index, shard.name) for index, shard in enumerate(shards) if not shard.earlier]
    for _ in engine.map(task, mine):
        pass


def drop_duplicates(documents: Documents, shard: str, work: Path, reason: str) -> Documents:
    """Drop the documents that another stands for."""
    path = _path(work, shard)
    standing = _standing(path, path.stat().st_mtime_ns)
    rows = documents.rows()
    found = [standing.get(row) for row in range(rows.start, rows.stop)]
    details = [None if entry is None else _detail(*entry) for entry in found]
    return documents.drop([None if entry is None else reason for entry in found], details)


def read_verdicts(work: Path, shard: str) -> pa.Table:
    """The clustered documents of a shard; columns of :data:`VERDICTS`."""
    return pq.read_table(_path(work, shard))


def stood_for(verdicts: pa.Table) -> pa.Table:
    """Of verdicts those of the documents that another one stands for."""
    return verdicts.filter(pc.not_equal(verdicts.column("number"), verdicts.column("survivor_number")))


def _path(work: Path, shard: str) -> Path:
    return work / "verdicts" / f"{file_name(shard)}.parquet"


def _detail(survivor: str, jaccard: float | None) -> str:
    return f"of {survivor}" if jaccard is None else f"of {survivor}, similarity {jaccard:.3f}"


@functools.lru_cache(maxsize=2)
def _standing(path: Path, changed_ns: int) -> dict[int, tuple[str, float | None]]:
    """The rows of a shard that are dropped, with what stands for them; ``changed_ns`` tells a new file from an old."""
    table = stood_for(pq.read_table(path))
    columns = (table.column(name).to_pylist() for name in ("row", "survivor", "jaccard"))
    return {row: (survivor, jaccard) for row, survivor, jaccard in zip(*columns, strict=True)}


def _write_of_shard(work: Path, offsets: np.ndarray, item: tuple[int, str]) -> None:
    index, name = item
    members, standing = load_array(work / "members.npy"), load_array(work / "standing.npy")
    begin, end = np.searchsorted(members, offsets[index : index + 2])
    similar = np.array(load_array(work / "jaccard.npy")[begin:end])
    numbers, stands = np.array(members[begin:end]), np.array(standing[begin:end])
    with pa.memory_map(str(work / "ids.arrow")) as source:
        reader = pa.ipc.open_file(source)
        ids, survivors = _ids(reader, offsets, numbers), _ids(reader, offsets, stands)
        values = pa.array(similar, pa.float32(), mask=np.isnan(similar))
        columns = [pa.array(numbers - offsets[index]), ids, survivors, pa.array(numbers), pa.array(stands), values]
        table = pa.table(columns, schema=VERDICTS)
        with atomic_file(_path(work, name)) as part:
            pq.write_table(table, part)


def _ids(reader: pa.ipc.RecordBatchFileReader, offsets: np.ndarray, numbers: np.ndarray) -> pa.Array:
    """[N] strings, the ids of documents by their numbers; read from the file through the page cache."""
    sources = np.searchsorted(offsets, numbers, side="right") - 1
    order = np.argsort(sources, kind="stable")
    pieces = [pa.array([], pa.string())]
    for source in np.unique(sources):
        rows = numbers[order][sources[order] == source] - offsets[source]
        pieces.append(reader.get_batch(int(source)).column(0).take(pa.array(rows)))
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pa.concat_arrays(pieces).take(pa.array(back))
