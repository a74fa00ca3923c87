"""Token shards: documents as token ids, in memory-mapped files or in memory.

A directory holds, for each shard, ``NAME.tokens`` (int32, little-endian, documents one after another), ``NAME.ends``
(int64, little-endian, where each document ends in it), ``NAME.documents`` (Arrow: each document's id and source) and,
where not every token is to be learned, ``NAME.learned`` (a bit a token, the lowest first); and ``metadata.json``:
counts, checksums, and the tokenizer's fingerprint. :mod:`leyden.data.tokenise` writes it, whole or not at all.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.data.blocks import FirstReads, check_blocks, checksums, damaged

TOKEN = np.dtype("<i4")
END = np.dtype("<i8")
METADATA = "metadata.json"
_BLOCK_BYTES = 256 << 10  # one checksum each: little more than the system reads ahead for a document at random


class Shard(Config):
    """What the metadata says of one shard."""

    name: str
    num_documents: int
    num_tokens: int
    text_bytes: int
    token_checksums: tuple[int, ...]
    end_checksums: tuple[int, ...]
    document_checksums: tuple[int, ...] | None = None
    """None where ids were not kept."""
    learned_checksums: tuple[int, ...] | None = None
    """None where every token is learned."""


class TokenMetadata(Config):
    """``metadata.json``."""

    format: Literal["leyden-tokens-1"] = "leyden-tokens-1"
    tokenizer: str
    vocab_size: int
    block_bytes: int = 16 << 20
    """Of a checksum; older shards do not say it."""
    shards: tuple[Shard, ...]


def metadata_of(shards: Iterable[Shard], tokenizer: str, vocab_size: int) -> TokenMetadata:
    """The metadata of shards whose checksums are those of :func:`block_checksums`."""
    return TokenMetadata(tokenizer=tokenizer, vocab_size=vocab_size, block_bytes=_BLOCK_BYTES, shards=tuple(shards))


@dataclass(frozen=True, eq=False)
class TokenFile:
    """One file of tokens, of any toolkit.

    Attributes:
        tokens: [T], integers of any width, mapped.
        starts, lengths: [D] int64, each document's place in ``tokens``.
        learned: [T / 8, rounded up] uint8, a bit a token, the lowest first: whether it is to be learned; None: all are.
        documents: an Arrow file of each document's ``id`` and ``source``, or these columns; None: there are none.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    learned: np.ndarray | None = None
    documents: Path | Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True, eq=False)
class TokenShards:
    """Opened shards, as one row of documents.

    Attributes:
        directory: where they are.
        fingerprint: a hash of the metadata, checksums included: other tokens have another.
        tokenizer_fingerprint: of the tokenizer that made them; empty where another toolkit did.
        vocab_size: of that tokenizer.
        text_bytes: UTF-8 bytes of all documents; 0 where another toolkit made them.
        starts: [D] int64, where each document starts, counted over the shards laid end to end.
        lengths: [D] int64, its number of tokens, the first and the last token (bos, eod) included.
        rows: [D] int64, its number among all documents of the files; with gaps after :meth:`select`.
    """

    directory: Path
    fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    text_bytes: int
    starts: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    _files: tuple[TokenFile, ...]
    _offsets: np.ndarray  # [S] int64, where each shard starts
    _checksums: Mapping[Path, tuple[int, ...]]
    _block_bytes: int = _BLOCK_BYTES
    _tokens: FirstReads | None = None
    _learned: FirstReads | None = None
    _read_whole: set[Path] = field(default_factory=set)  # files of ids that were compared with their checksums

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Map the shards of ``directory``; check every length, the ends of all documents, and the first and last block
        of every file. The other blocks are checked when they are first read.

        Raises:
            UserError: it holds no shards, or they are damaged (which file, and what to do).
        """
        metadata, text = _read_metadata(directory / METADATA)
        files, sums = [], {}
        for shard in metadata.shards:
            sums |= shard_files(directory, shard)
            files.append(_map_shard(directory, shard))
        for path, blocks in sums.items():
            chosen = set(range(len(blocks))) if path.suffix == ".ends" else {0, len(blocks) - 1}
            check_blocks(path, blocks, metadata.block_bytes, chosen)
        opened = cls.over(files, directory, hashlib.sha256(text).hexdigest(), vocab_size=metadata.vocab_size)
        return replace(
            opened,
            tokenizer_fingerprint=metadata.tokenizer,
            text_bytes=sum(shard.text_bytes for shard in metadata.shards),
            _checksums=sums,
            _block_bytes=metadata.block_bytes,
            _tokens=_first_reads(directory, metadata, "tokens", [file.tokens for file in files]),
            _learned=_first_reads(directory, metadata, "learned", [file.learned for file in files]),
        )

    @classmethod
    def over(cls, files: Sequence[TokenFile], directory: Path, fingerprint: str, *, vocab_size: int) -> Self:
        """Files of tokens that are mapped already, as shards.

        Args:
            files: at least one.
            directory: named in messages.
            fingerprint: other tokens must have another.
            vocab_size: one more than the largest token.
        """
        offsets = np.cumsum([0, *(len(file.tokens) for file in files[:-1])])
        lengths = np.concatenate([file.lengths for file in files])
        starts = np.concatenate([file.starts + offset for file, offset in zip(files, offsets, strict=True)])
        rows = np.flatnonzero(lengths)  # other toolkits keep empty documents
        return cls(
            directory=directory,
            fingerprint=fingerprint,
            tokenizer_fingerprint="",
            vocab_size=vocab_size,
            text_bytes=0,
            starts=starts[rows],
            lengths=lengths[rows],
            rows=rows,
            _files=tuple(files),
            _offsets=offsets,
            _checksums={},
        )

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())

    @property
    def has_masks(self) -> bool:
        """Whether some token may not be learned."""
        return any(file.learned is not None for file in self._files)

    def verify(self) -> None:
        """Read everything and compare all checksums; other toolkits' files have none.

        Raises:
            UserError: a file is damaged.
        """
        for path, blocks in self._checksums.items():
            check_blocks(path, blocks, self._block_bytes, set(range(len(blocks))))

    def select(self, chosen: np.ndarray, name: str) -> Self:
        """Some of the documents.

        Args:
            chosen: [D] bool.
            name: says which they are; part of the fingerprint, as the choice itself is.
        """
        text = f"{self.fingerprint} {name} ".encode() + np.packbits(chosen).tobytes()
        return replace(
            self,
            fingerprint=hashlib.sha256(text).hexdigest(),
            starts=self.starts[chosen],
            lengths=self.lengths[chosen],
            rows=self.rows[chosen],
        )

    def shortened(self, indices: np.ndarray, kept: np.ndarray) -> Self:
        """All documents, some of them with their first tokens alone; those of which nothing is kept are left out.

        Args:
            indices: [N] int64, different documents.
            kept: [N] int64, how many tokens of each are kept.
        """
        lengths = self.lengths.copy()
        lengths[indices] = kept
        name = hashlib.sha256(np.stack([indices, kept]).astype(END).tobytes()).hexdigest()
        return replace(self, lengths=lengths).select(lengths > 0, f"shortened {name}")

    def of_length(self, above: int, up_to: int | None) -> Self:
        """The documents of more than ``above`` and at most ``up_to`` tokens; None sets no bound."""
        chosen = self.lengths > above
        if up_to is not None:
            chosen &= self.lengths <= up_to
        return self.select(chosen, f"length in ({above}, {up_to}]")

    def id(self, index: int) -> str:
        """The id of document ``index``; its number among all documents where ids were not kept."""
        return self._about(index, "id") or f"#{self.rows[index]}"

    def source(self, index: int) -> str:
        """The source of document ``index``; empty where that was not kept."""
        return self._about(index, "source") or ""

    def _about(self, index: int, column: str) -> str | None:
        row = int(self.rows[index])
        for file in self._files:
            if row < len(file.starts):
                return self._column(file, column, row)
            row -= len(file.starts)
        raise IndexError(index)

    def _column(self, file: TokenFile, column: str, row: int) -> str | None:
        if isinstance(file.documents, Path):
            return self._documents(file.documents)[column][row].as_py()
        return None if file.documents is None or column not in file.documents else file.documents[column][row]

    def _documents(self, path: Path) -> dict[str, Any]:
        if path not in self._read_whole:
            blocks = self._checksums[path]
            check_blocks(path, blocks, self._block_bytes, set(range(len(blocks))))
            self._read_whole.add(path)
        return _read_documents(path)

    def document(self, index: int) -> np.ndarray:
        """The tokens of document ``index``: [length] int64."""
        return self.gather(self.starts[index : index + 1], self.lengths[index : index + 1])

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The tokens of several pieces, laid one after another.

        Args:
            starts: [P] int64, where each piece starts, counted over the shards laid end to end.
            lengths: [P] int64; no piece reaches over the end of a shard.

        Returns:
            [sum of lengths] int64.
        """
        tokens = np.empty(int(lengths.sum()), np.int64)
        np.concatenate(self.views(starts, lengths), out=tokens)
        return tokens

    def views(self, starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """The tokens of each piece of :meth:`gather` where they lie, uncopied, in the files' own integers."""
        # Slices, since per token they cost a copy alone, where an index array costs five passes over memory.
        shard = np.searchsorted(self._offsets, starts, side="right") - 1
        local = starts - self._offsets[shard]
        if self._tokens is not None:
            self._tokens.check(shard, local * TOKEN.itemsize, (local + lengths) * TOKEN.itemsize)
        places = zip(shard.tolist(), local.tolist(), (local + lengths).tolist(), strict=True)
        files = [file.tokens for file in self._files]
        return [files[number][start:end] for number, start, end in places]

    def learned(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Which tokens of several pieces are to be learned: [sum of lengths] bool; arguments as of :meth:`gather`."""
        shard = np.searchsorted(self._offsets, starts, side="right") - 1
        local = starts - self._offsets[shard]
        if self._learned is not None:
            masked = np.array([file.learned is not None for file in self._files])[shard]
            ends = (local + lengths + 7) // 8
            self._learned.check(shard[masked], local[masked] // 8, ends[masked])
        result = np.ones(int(lengths.sum()), bool)
        position = 0
        for number, start, length in zip(shard.tolist(), local.tolist(), lengths.tolist(), strict=True):
            bits = self._files[number].learned
            if bits is not None:
                unpacked = np.unpackbits(bits[start // 8 : (start + length + 7) // 8], bitorder="little")
                result[position : position + length] = unpacked[start % 8 : start % 8 + length]
            position += length
        return result


def shard_files(directory: Path, shard: Shard) -> dict[Path, tuple[int, ...]]:
    """The files of a shard and their checksums."""
    named = {
        "tokens": shard.token_checksums,
        "ends": shard.end_checksums,
        "documents": shard.document_checksums,
        "learned": shard.learned_checksums,
    }
    return {directory / f"{shard.name}.{suffix}": blocks for suffix, blocks in named.items() if blocks is not None}


def block_checksums(path: Path) -> tuple[int, ...]:
    """The checksum of each block of a file."""
    return checksums(path, _BLOCK_BYTES)


def _first_reads(
    directory: Path, metadata: TokenMetadata, suffix: str, arrays: Sequence[np.ndarray | None]
) -> FirstReads:
    """The files of one kind of all shards, to be checked as they are read."""
    paths = [directory / f"{shard.name}.{suffix}" for shard in metadata.shards]
    sums = [shard_files(directory, shard).get(path, ()) for path, shard in zip(paths, metadata.shards, strict=True)]
    return FirstReads(paths, arrays, sums, metadata.block_bytes)


def _read_metadata(path: Path) -> tuple[TokenMetadata, bytes]:
    """The metadata in ``path``, and its bytes."""
    try:
        text = path.read_bytes()
        return TokenMetadata.parse(json.loads(text), str(path)), text
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no token shards: there is no {path.name}.") from None
    except ValueError as error:
        raise damaged(path, f"it is not JSON: {error}") from None


def _map_shard(directory: Path, shard: Shard) -> TokenFile:
    ends = _map(directory / f"{shard.name}.ends", END, shard.num_documents)
    lengths = np.diff(ends, prepend=0)
    return TokenFile(
        tokens=_map(directory / f"{shard.name}.tokens", TOKEN, shard.num_tokens),
        starts=ends - lengths,
        lengths=lengths,
        learned=None
        if shard.learned_checksums is None
        else _map(directory / f"{shard.name}.learned", np.dtype("u1"), -(-shard.num_tokens // 8)),
        documents=None if shard.document_checksums is None else directory / f"{shard.name}.documents",
    )


def _map(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    """The file as an array of ``length`` items, on disk."""
    size = path.stat().st_size if path.is_file() else 0
    if size != length * dtype.itemsize:
        raise damaged(path, f"it has {size} bytes instead of {length * dtype.itemsize}")
    return np.asarray(np.memmap(path, dtype, mode="r"))  # slices of a plain array are made ten times as fast


def _read_documents(path: Path) -> dict[str, Any]:
    """The columns of ``NAME.documents``, mapped: what is not asked for is not read."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise damaged(path, f"it is not an Arrow file: {error}") from None
    return {name: table.column(name) for name in ("id", "source")}
