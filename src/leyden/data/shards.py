"""Token shards: documents as token ids in memory-mapped files.

A directory holds, for each shard, ``NAME.tokens`` (int32, little-endian, documents one after another) and ``NAME.ends``
(int64, little-endian, where each document ends in it), and ``metadata.json``: counts, checksums, and the tokenizer's
fingerprint. It is written whole or not at all.
"""

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.core.files import atomic_directory
from leyden.core.log import Bar, progress
from leyden.data.documents import Document
from leyden.tokenizer import Tokenizer

_TOKEN = np.dtype("<i4")
_END = np.dtype("<i8")
_BATCH_CHARACTERS = 4 << 20  # tokenised at once: enough to occupy every core
_BLOCK_BYTES = 16 << 20  # one checksum each, so that opening need not read everything


class _Shard(Config):
    """What the metadata says of one shard."""

    name: str
    num_documents: int
    num_tokens: int
    text_bytes: int
    token_checksums: tuple[int, ...]
    end_checksums: tuple[int, ...]


class _Metadata(Config):
    """``metadata.json``."""

    format: Literal["leyden-tokens-1"]
    tokenizer: str
    vocab_size: int
    shards: tuple[_Shard, ...]


def write_shards(
    documents: Iterable[Document], tokenizer: Tokenizer, directory: Path, *, shard_tokens: int = 1 << 28
) -> "TokenShards":
    """Tokenise ``documents``, each as ``[bos] + text + [eod]``, into ``directory`` (replaced where it exists).

    A shard is closed with the document that takes it to ``shard_tokens`` (by default a file of 1 GiB).

    Raises:
        UserError: there are no documents, or the disk is full.
    """
    total = sum(len(document.text) for document in documents) if isinstance(documents, Sequence) else None
    shards: list[_Shard] = []
    with atomic_directory(directory) as part, progress("tokenising", total, unit="characters") as bar:
        tokenised = _tokenise(documents, tokenizer, bar)
        for first in tokenised:
            shards.append(_write_shard(part, f"{len(shards):05d}", itertools.chain([first], tokenised), shard_tokens))
        if not shards:
            raise UserError("There are no documents to tokenise.")
        metadata = _Metadata(
            format="leyden-tokens-1",
            tokenizer=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            shards=tuple(shards),
        )
        (part / "metadata.json").write_text(metadata.model_dump_json(indent=1) + "\n")
    return TokenShards.open(directory)


def _tokenise(documents: Iterable[Document], tokenizer: Tokenizer, bar: Bar) -> Iterator[tuple[np.ndarray, int]]:
    """For each document its tokens, int32 [length], and its number of UTF-8 bytes."""
    for batch in _batches(documents):
        texts = [document.text for document in batch]
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            tokens = np.empty(len(ids) + 2, _TOKEN)
            tokens[0], tokens[1:-1], tokens[-1] = tokenizer.bos_id, ids, tokenizer.eod_id
            yield tokens, len(text.encode())
        bar.advance(sum(map(len, texts)))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_shard(directory: Path, name: str, tokenised: Iterable[tuple[np.ndarray, int]], shard_tokens: int) -> _Shard:
    """Write documents until there are ``shard_tokens``, or no more documents."""
    ends: list[int] = []
    text_bytes = 0
    tokens_path, ends_path = directory / f"{name}.tokens", directory / f"{name}.ends"
    with tokens_path.open("wb") as file:
        for tokens, num_bytes in tokenised:
            file.write(tokens.data)
            ends.append(len(tokens) + (ends[-1] if ends else 0))
            text_bytes += num_bytes
            if ends[-1] >= shard_tokens:
                break
    np.array(ends, _END).tofile(ends_path)
    return _Shard(
        name=name,
        num_documents=len(ends),
        num_tokens=ends[-1],
        text_bytes=text_bytes,
        token_checksums=_checksums(tokens_path),
        end_checksums=_checksums(ends_path),
    )


def _checksums(path: Path) -> tuple[int, ...]:
    """CRC-32 of each block of a file."""
    with path.open("rb") as file:
        return tuple(zlib.crc32(block) for block in iter(lambda: file.read(_BLOCK_BYTES), b""))


@dataclass(frozen=True, eq=False)
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
    _checksums: Mapping[Path, tuple[int, ...]]

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Map the shards of ``directory``; check every length, and the first and last block of every file.

        Raises:
            UserError: it holds no shards, or they are damaged (which file, and what to do).
        """
        metadata, text = _read_metadata(directory / "metadata.json")
        tokens, ends, checksums = [], [], {}
        for shard in metadata.shards:
            tokens_path, ends_path = directory / f"{shard.name}.tokens", directory / f"{shard.name}.ends"
            tokens.append(_map(tokens_path, _TOKEN, shard.num_tokens))
            ends.append(_map(ends_path, _END, shard.num_documents))
            checksums |= {tokens_path: shard.token_checksums, ends_path: shard.end_checksums}
        for path, blocks in checksums.items():
            _check_blocks(path, blocks, {0, len(blocks) - 1})
        lengths = [np.diff(end, prepend=0) for end in ends]
        offsets = np.cumsum([0, *map(len, tokens[:-1])])
        return cls(
            directory=directory,
            fingerprint=hashlib.sha256(text).hexdigest(),
            tokenizer_fingerprint=metadata.tokenizer,
            vocab_size=metadata.vocab_size,
            text_bytes=sum(shard.text_bytes for shard in metadata.shards),
            starts=np.concatenate([e - n + o for e, n, o in zip(ends, lengths, offsets, strict=True)]),
            lengths=np.concatenate(lengths),
            _tokens=tuple(tokens),
            _offsets=offsets,
            _checksums=checksums,
        )

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
        for path, blocks in self._checksums.items():
            _check_blocks(path, blocks, set(range(len(blocks))))

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


def _read_metadata(path: Path) -> tuple[_Metadata, bytes]:
    """The metadata in ``path``, and its bytes."""
    try:
        text = path.read_bytes()
        return _Metadata.parse(json.loads(text), str(path)), text
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no token shards: there is no {path.name}.") from None
    except ValueError as error:
        raise _damaged(path, f"it is not JSON: {error}") from None


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
            if zlib.crc32(file.read(_BLOCK_BYTES)) != checksums[block]:
                raise _damaged(path, f"bytes from {block * _BLOCK_BYTES} on are not what was written")


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}. Delete {path.parent} and build the token shards again.")
