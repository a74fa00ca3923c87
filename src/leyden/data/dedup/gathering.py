"""The records that deduplication makes of every document: its id, its rank among duplicates, and its buckets.

Documents that fall in a bucket together are duplicates, or candidates for it. One file set a shard stands in a
directory, which a later build can be given to compare with (``against``).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.data.builds.directory import Build
from leyden.data.dedup.normalisation import texts_of
from leyden.data.dedup.runs import file_name, groups, load_array, mark_of, save_array, write_run
from leyden.data.dedup.windows import hash_strings, mix
from leyden.data.documents import Documents, pc
from leyden.data.marks import map_missing, read_mark, write_mark
from leyden.data.parquet import read_batches
from leyden.data.stage import Corpus

_EARLIER = "earlier crawl's "
RANK = np.dtype([("bytes", "<i8"), ("text", "<u8"), ("identity", "<u8")])
"""What survivors are chosen by, the greatest first: the longest text, then hashes of its exact text and identity.

Nothing in it depends on where a document stands, so the survivors do not either. Length leads because the longest of
near-duplicates is most often the whole page that others are cut from; the hash of the text makes the choice fall on
one content, that of the identity on one of several copies of it."""


@dataclass(frozen=True)
class Gathered:
    """Where the notes on one shard are.

    Attributes:
        directory: of the notes of all shards.
        name: of the shard.
        documents: the shard's Parquet file, where the documents themselves are at hand.
        earlier: whether it is of an earlier crawl, whose documents always survive.
    """

    directory: Path
    name: str
    documents: Path | None
    earlier: bool = False

    def __getitem__(self, ending: str) -> Path:
        return self.directory / f"{file_name(self.name)}.{ending}"

    @property
    def run(self) -> Path:
        """The buckets' run: values [N] with ``row``, and ``check``, where buckets are told apart by more than keys."""
        return self.directory / file_name(self.name)

    @property
    def done(self) -> Path:
        """The mark of all of them."""
        return mark_of(self.run)

    def ranks(self) -> np.ndarray:
        """[D] RANK."""
        return load_array(self["ranks.npy"])

    def edges(self) -> np.ndarray:
        """[E, 2] uint32, rows of the shard that share a bucket."""
        return load_array(self["edges.npy"])

    def ids(self) -> pa.ChunkedArray:
        """[D] strings; those of earlier crawls say so, since a later crawl can have the same."""
        ids = pq.read_table(self["ids.parquet"]).column("id")
        return pc.binary_join_element_wise(_EARLIER, ids, "") if self.earlier else ids


Buckets = Callable[[Documents], tuple[np.ndarray, np.ndarray | None, np.ndarray]]
"""Of a batch of documents, [N] uint64 keys of buckets, [N] uint64 more of them or nothing, and [N] rows."""


def rank(documents: Documents) -> np.ndarray:
    """[D] RANK, by which survivors are chosen."""
    result = np.zeros(len(documents), RANK)
    texts = texts_of(documents)
    result["bytes"] = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    result["text"] = hash_strings(texts)
    result["identity"] = identities(documents)
    return result


def identities(documents: Documents) -> np.ndarray:
    """[D] uint64, a hash of each document's id, text, address and metadata.

    It orders documents in the same way wherever they stand. An id alone would not: it can come again.
    """
    result = hash_strings(texts_of(documents))
    for name in ("id", "url", "metadata"):
        result = mix(result, hash_strings(pc.fill_null(documents.table.column(name).combine_chunks(), "")))
    return result


def gather(corpus: Corpus, directory: Path, buckets: Buckets, settings: dict[str, Any]) -> list[Gathered]:
    """Note every document of a corpus in ``directory``; what is there of an interrupted run is not made again.

    Args:
        corpus: the documents.
        directory: for the notes.
        buckets: picklable.
        settings: what the buckets depend on; a later build whose settings differ cannot use them.
    """
    write_mark(directory / "settings.json", (), {**settings, "shards": sorted(corpus.shards)})
    shards = [Gathered(directory, name, path) for name, path in corpus.shards.items()]
    task = functools.partial(_note, buckets)
    map_missing(corpus.engine, task, [(shard.done, shard) for shard in shards], "comparing documents")
    return shards


def earlier(corpus: Corpus, against: Sequence[Path], buckets: Buckets, settings: dict[str, Any]) -> list[Gathered]:
    """The notes on earlier crawls: those of directories that :func:`gather` filled, else made of their documents
    (:func:`document_files`).

    Raises:
        UserError: a path is neither, or was gathered with other settings.
    """
    shards: list[Gathered] = []
    for number, path in enumerate(against):
        if (path / "settings.json").is_file():
            shards += _gathered_before(path, settings)
            continue
        files = document_files(path)
        named = {f"{number}/{index}": file for index, file in enumerate(files)}
        given = Corpus(named, corpus.work, corpus.engine)
        made = gather(given, corpus.work / "earlier" / str(number), buckets, settings)
        shards += [Gathered(shard.directory, shard.name, shard.documents, earlier=True) for shard in made]
    return shards


def document_files(path: Path) -> list[Path]:
    """A Parquet file of documents; those in a directory; or, of a build's directory, what its last stage kept.

    Raises:
        UserError: there are none, they are not of documents, or the build has not finished.
    """
    if (path / "stages").is_dir():
        last = Build.whole(path).stages()[-1]
        files = last.files()
    else:
        files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    if not files:
        raise UserError(
            f"{path} has no Parquet files of documents, nor signatures of an earlier build; give one of them."
        )
    try:
        missing = {"id", "text", "messages"} - set(pq.read_schema(files[0]).names)
    except pa.ArrowInvalid as error:
        raise UserError(f"{files[0]} cannot be read as Parquet: {error}.") from None
    if missing:
        raise UserError(f"{files[0]} is not of documents: it has no column {', '.join(sorted(missing))}.")
    return files


def note_files(shard: Gathered, parts: Sequence[tuple[np.ndarray, pa.Array]]) -> list[Path]:
    """Write the ranks and ids of a shard's batches; the files."""
    ranks = np.concatenate([ranks for ranks, _ in parts]) if parts else np.zeros(0, RANK)
    save_array(shard["ranks.npy"], ranks)
    with atomic_file(shard["ids.parquet"]) as part:
        pq.write_table(pa.table({"id": pa.chunked_array([ids for _, ids in parts], pa.string())}), part)
    return [shard["ranks.npy"], shard["ids.parquet"]]


def note_buckets(shard: Gathered, keys: np.ndarray, checks: np.ndarray | None, rows: np.ndarray) -> list[Path]:
    """Write the buckets of a shard: one record a bucket, and edges to its other documents; the files.

    So many copies of one text in a shard are one record, and partitions stay of even size whatever the corpus.
    """
    columns = [keys] if checks is None else [keys, checks]
    order, fresh = groups(*columns)
    head = order[fresh][np.cumsum(fresh) - 1]
    packed = (rows[head].astype(np.uint64) << np.uint64(32)) | rows[order].astype(np.uint64)
    packed = np.unique(packed[~fresh])
    edges = np.stack([packed >> np.uint64(32), packed & np.uint64(0xFFFFFFFF)], axis=1).astype(np.uint32)
    linked = save_array(shard["edges.npy"], edges[edges[:, 0] != edges[:, 1]])
    first = order[fresh]
    values = np.zeros(len(first), [("row", "<u4")] if checks is None else [("row", "<u4"), ("check", "<u8")])
    values["row"] = rows[first]
    if checks is not None:
        values["check"] = checks[first]
    return [linked, *write_run(shard.run, keys[first], values)]


def _note(buckets: Buckets, shard: Gathered) -> list[Path]:
    assert shard.documents is not None
    described, found, start = [], [], 0
    for documents in read_batches(shard.documents):
        described.append((rank(documents), documents.table.column("id").combine_chunks()))
        keys, checks, rows = buckets(documents)
        found.append((keys, checks, rows + start))
        start += len(documents)
    files = note_files(shard, described)
    keys = np.concatenate([np.zeros(0, np.uint64), *(keys for keys, _, _ in found)])
    rows = np.concatenate([np.zeros(0, np.int64), *(rows for _, _, rows in found)])
    checks = [checks for _, checks, _ in found if checks is not None]
    return files + note_buckets(shard, keys, np.concatenate(checks) if checks else None, rows)


def _gathered_before(directory: Path, settings: dict[str, Any]) -> list[Gathered]:
    mark = read_mark(directory / "settings.json")
    if mark is None:
        raise UserError(
            f"{directory / 'settings.json'} is damaged, or of an older version; give the earlier documents themselves."
        )
    then = dict(mark.facts)
    names = then.pop("shards")
    if then != settings:
        differ = sorted(key for key in {*then, *settings} if then.get(key) != settings.get(key))
        there = ", ".join(f"{key} = {then.get(key)!r} there, {settings.get(key)!r} here" for key in differ)
        raise UserError(
            f"{directory} was made with other settings ({there}); give these, or the earlier documents themselves."
        )
    shards = [Gathered(directory, name, None, earlier=True) for name in names]
    for shard in shards:
        done = read_mark(shard.done)
        if done is None:
            raise UserError(
                f"{directory} has no signatures of its shard {shard.name}: its build did not finish; run it."
            )
        fault = done.fault()
        if fault:
            raise UserError(f"{fault}; run its build again, or give the earlier documents themselves.")
    return shards
