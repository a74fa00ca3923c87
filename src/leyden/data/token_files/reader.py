"""Which toolkit wrote a file, and its tokens as :class:`leyden.data.shards.TokenShards`. Nothing is copied."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.data.marks import hash_file
from leyden.data.shards import TokenFile, TokenShards
from leyden.data.token_files import formats
from leyden.tokenizer import Tokenizer

_BLOCK_TOKENS = 1 << 20
_READERS = {".ds": formats.read_datatrove, ".npy": formats.read_npy, ".bin": formats.read_bin}


class FileRecord(Config):
    """What reading a whole token file found, so that it need not be read whole again while it is as it was."""

    path: str
    versions: tuple[tuple[int, int], ...]
    """Size in bytes and time of the last change in nanoseconds, of the file and of each file that belongs to it."""
    digest: str
    """A hash of their bytes."""
    largest: int
    """The largest token."""


def open_token_files(
    paths: Path | Sequence[Path], *, tokenizer: Tokenizer | None = None, document_token: int | None = None
) -> TokenShards:
    """Map token files.

    They are read by their names: ``X.bin`` beside ``X.idx`` is Megatron's; any other ``.bin`` is nanoGPT's, or llm.c's
    where it has that header; ``.ds`` is datatrove's, with ``.ds.index`` and, where there is one, ``.ds.loss``; ``.npy``
    is NumPy's, or without its header that of OLMo, with ``.csv.gz``. Documents are as long as their toolkit made them:
    nothing is added at their ends.

    Args:
        paths: files, or folders of them; each file becomes a shard, in order of name.
        tokenizer: that made them: a token outside its vocabulary is an error. None: the vocabulary ends with the
            largest token in them.
        document_token: the token that ends each document, for formats that do not say where documents end (``.bin``
            of nanoGPT and llm.c, ``.npy`` without ``.csv.gz``). llm.c begins documents with it; then it is taken as
            the first of each where the file begins with it. None: such a file is one document.

    Raises:
        UserError: no such files; one is truncated, of another format, or of tokens that are no integers.
    """
    return read_token_files(paths, tokenizer=tokenizer, document_token=document_token)[0]


def read_token_files(
    paths: Path | Sequence[Path],
    *,
    tokenizer: Tokenizer | None = None,
    document_token: int | None = None,
    known: Iterable[FileRecord] = (),
) -> tuple[TokenShards, tuple[FileRecord, ...]]:
    """As :func:`open_token_files`, and what was found in each file; files that are as ``known`` says are not read.

    Raises:
        UserError: as :func:`open_token_files`.
    """
    files = _find([paths] if isinstance(paths, Path) else paths)
    opened = [_READERS[path.suffix](path, document_token) for path in files]
    for path, file in zip(files, opened, strict=True):
        if not len(file.tokens):
            raise UserError(f"{path} holds no documents; leave it out.")
    before = {record.path: record for record in known}
    records = []
    with progress("checking token files", len(files)) as bar:
        for path, file in zip(files, opened, strict=True):
            records.append(_record(path, file, before.get(str(path.absolute()))))
            bar.advance()
    for record in records:
        if tokenizer is not None and record.largest >= tokenizer.vocab_size:
            raise UserError(
                f"{record.path} holds token {record.largest}, and the tokenizer has {tokenizer.vocab_size} tokens: "
                "another one made this file. Name the tokenizer that made it."
            )
    vocab_size = tokenizer.vocab_size if tokenizer else max(record.largest for record in records) + 1
    parts = [f"documents end with {document_token}", *(record.digest for record in records)]
    fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return TokenShards.over(opened, files[0].parent, fingerprint, vocab_size=vocab_size), tuple(records)


def _find(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in _READERS)
        if not found or found[0].suffix not in _READERS:
            raise UserError(f"{path} is no token file and holds none; give files of {', '.join(sorted(_READERS))}.")
        files += found
    if not files:
        raise UserError("Give at least one token file.")
    return files


def _record(path: Path, file: TokenFile, before: FileRecord | None) -> FileRecord:
    """What is found in a file, or was found in it when it was the same."""
    parts = formats.files_of(path)
    versions = tuple((status.st_size, status.st_mtime_ns) for status in (part.stat() for part in parts))
    if before is not None and before.versions == versions:
        return before
    digest = hashlib.sha256(" ".join(f"{part.suffix} {hash_file(part)}" for part in parts).encode()).hexdigest()
    return FileRecord(path=str(path.absolute()), versions=versions, digest=digest, largest=_largest(file.tokens, path))


def _largest(tokens: np.ndarray, path: Path) -> int:
    """The largest token; a block at a time, so that memory does not grow with the file."""
    blocks = [tokens[start : start + _BLOCK_TOKENS] for start in range(0, len(tokens), _BLOCK_TOKENS)]
    if min((int(block.min()) for block in blocks), default=0) < 0:
        raise UserError(f"{path} holds a negative token; its integers are wider or narrower than they seem.")
    return max((int(block.max()) for block in blocks), default=0)
