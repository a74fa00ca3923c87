"""Token shards: documents as token ids in memory-mapped files.

A directory holds, for each shard, ``NAME.tokens`` (int32, little-endian, documents one after another) and ``NAME.ends``
(int64, little-endian, where each document ends in it), and ``metadata.json``: counts, checksums, and the tokenizer's
fingerprint. It is written whole or not at all.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from leyden.core.errors import UserError
from leyden.core.files import atomic_directory
from leyden.core.log import progress
from leyden.data.documents import Document
from leyden.tokenizer import Tokenizer

_FORMAT = "leyden-tokens-1"
_TOKEN = np.dtype("<i4")
_END = np.dtype("<i8")
_BATCH_BYTES = 4 << 20  # text tokenised at once: enough to occupy every core
_BLOCK_BYTES = 16 << 20  # one checksum each, so that opening need not read everything
_SHARD_TOKENS = 1 << 28  # 1 GiB


def write_shards(
    documents: Iterable[Document], tokenizer: Tokenizer, directory: Path, *, shard_tokens: int = _SHARD_TOKENS
) -> "TokenShards":
    """Tokenise ``documents``, each as ``[bos] + text + [eod]``, into ``directory`` (replaced where it exists).

    A shard is closed with the document that takes it to ``shard_tokens``.

    Raises:
        UserError: there are no documents, or the disk is full.
    """
    total = sum(len(document.text) for document in documents) if isinstance(documents, Sequence) else None
    shards: list[dict[str, Any]] = []
    num_bytes = 0
    with atomic_directory(directory) as part, progress("tokenising", total, unit="characters") as bar:
        writer = _ShardWriter(part, 0)
        for batch in _batches(documents):
            texts = [document.text for document in batch]
            num_bytes += sum(len(text.encode()) for text in texts)
            for ids in tokenizer.encode_batch(texts):
                writer.add(tokenizer.bos_id, ids, tokenizer.eod_id)
                if writer.num_tokens >= shard_tokens:
                    shards.append(writer.close())
                    writer = _ShardWriter(part, len(shards))
            bar.advance(sum(map(len, texts)))
        shards.append(writer.close())
        metadata = {
            "format": _FORMAT,
            "tokenizer": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "text_bytes": num_bytes,
            "shards": [shard for shard in shards if shard["num_documents"]],
        }
        if not metadata["shards"]:
            raise UserError("There are no documents to tokenise.")
        (part / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")
    return TokenShards.open(directory)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _ShardWriter:
    """Writes one shard, document by document."""

    def __init__(self, directory: Path, number: int) -> None:
        self._name = f"{number:05d}"
        self._directory = directory
        self._tokens = (directory / f"{self._name}.tokens").open("wb")
        self._ends: list[int] = []
        self.num_tokens = 0

    def add(self, bos: int, ids: np.ndarray, eod: int) -> None:
        document = np.empty(len(ids) + 2, _TOKEN)
        document[0], document[1:-1], document[-1] = bos, ids, eod
        self._tokens.write(document.data)
        self.num_tokens += len(document)
        self._ends.append(self.num_tokens)

    def close(self) -> dict[str, Any]:
        """Finish the files; what the metadata says of the shard."""
        self._tokens.close()
        tokens = self._directory / f"{self._name}.tokens"
        ends = self._directory / f"{self._name}.ends"
        np.array(self._ends, _END).tofile(ends)
        return {
            "name": self._name,
            "num_tokens": self.num_tokens,
            "num_documents": len(self._ends),
            "token_checksums": _checksums(tokens),
            "end_checksums": _checksums(ends),
        }


def _checksums(path: Path) -> list[int]:
    """CRC-32 of each block of a file."""
    with path.open("rb") as file:
        return [zlib.crc32(block) for block in iter(lambda: file.read(_BLOCK_BYTES), b"")]


@dataclass(frozen=True)
class TokenShards:
    """Opened shards, as one row of documents.

    Attributes:
        directory: where they are.
        fingerprint: a hash of the metadata, checksums included: other tokens have another.
        tokenizer_fingerprint: of the tokenizer that made them.
        vocab_size: of that tokenizer.
        text_bytes: UTF-8 bytes of all documents.
        starts: [D] int64, where each document starts, counted over the shards laid end to end.
        lengths: [D] int64, its number of tokens, the first and the last token (bos, eod) included.
    """

    directory: Path
    fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    text_bytes: int
    starts: np.ndarray
    lengths: np.ndarray
    _tokens: tuple[np.ndarray, ...]
    _offsets: np.ndarray  # [S] int64, where each shard starts
    _checksums: tuple[tuple[Path, tuple[int, ...]], ...]

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Map the shards of ``directory``; check every length, and the first and last block of every file.

        Raises:
            UserError: it holds no shards, or they are damaged (which file, and what to do).
        """
        metadata, text = _read_metadata(directory)
        tokens, ends, files = [], [], []
        for shard in metadata["shards"]:
            path = directory / f"{shard['name']}.tokens"
            tokens.append(_map(path, _TOKEN, shard["num_tokens"]))
            files.append((path, tuple(shard["token_checksums"])))
            path = directory / f"{shard['name']}.ends"
            ends.append(np.array(_map(path, _END, shard["num_documents"])))
            files.append((path, tuple(shard["end_checksums"])))
        offsets = np.cumsum([0, *map(len, tokens)])
        shards = cls(
            directory=directory,
            fingerprint=hashlib.sha256(text).hexdigest(),
            tokenizer_fingerprint=metadata["tokenizer"],
            vocab_size=metadata["vocab_size"],
            text_bytes=metadata["text_bytes"],
            starts=np.concatenate(
                [np.concatenate(([0], end[:-1])) + offset for end, offset in zip(ends, offsets, strict=False)]
            ),
            lengths=np.concatenate([np.diff(end, prepend=0) for end in ends]),
            _tokens=tuple(tokens),
            _offsets=offsets[:-1],
            _checksums=tuple(files),
        )
        for path, checksums in files:
            _check_blocks(path, checksums, {0, len(checksums) - 1})
        return shards

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self._offsets[-1]) + len(self._tokens[-1])

    def verify(self) -> None:
        """Read everything and compare all checksums.

        Raises:
            UserError: a file is damaged.
        """
        for path, checksums in self._checksums:
            _check_blocks(path, checksums, set(range(len(checksums))))

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
        ends = np.cumsum(lengths)
        index = np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)
        shard = np.searchsorted(self._offsets, starts, side="right") - 1
        if np.all(shard == shard[0]):
            return self._tokens[shard[0]][index - self._offsets[shard[0]]].astype(np.int64)
        tokens = np.empty(len(index), np.int64)
        shard_of_token = np.repeat(shard, lengths)
        for number in np.unique(shard):
            chosen = shard_of_token == number
            tokens[chosen] = self._tokens[number][index[chosen] - self._offsets[number]]
        return tokens


def _read_metadata(directory: Path) -> tuple[dict[str, Any], bytes]:
    """The metadata of ``directory``, and its bytes."""
    path = directory / "metadata.json"
    try:
        text = path.read_bytes()
        metadata = json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{directory} holds no token shards: there is no {path.name}.") from None
    except ValueError as error:
        raise _damaged(path, f"it is not JSON: {error}") from None
    if not isinstance(metadata, dict) or metadata.get("format") != _FORMAT:
        raise _damaged(path, f"it does not say that the format is {_FORMAT}")
    return metadata, text


def _map(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    """The file as an array of ``length`` items, on disk."""
    size = path.stat().st_size if path.is_file() else 0
    if size != length * dtype.itemsize:
        raise _damaged(path, f"it has {size} bytes instead of {length * dtype.itemsize}")
    return np.memmap(path, dtype, mode="r")


def _check_blocks(path: Path, checksums: Sequence[int], blocks: set[int]) -> None:
    with path.open("rb") as file:
        for block in sorted(blocks):
            file.seek(block * _BLOCK_BYTES)
            if _checksum(file) != checksums[block]:
                raise _damaged(path, f"bytes from {block * _BLOCK_BYTES} on are not what was written")


def _checksum(file: BinaryIO) -> int:
    return zlib.crc32(file.read(_BLOCK_BYTES))


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}. Delete {path.parent} and build the token shards again.")
