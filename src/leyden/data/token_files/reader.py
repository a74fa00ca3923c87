"""Which toolkit wrote a file, and its tokens as :class:`leyden.data.shards.TokenShards`. Nothing is copied."""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leyden.core.errors import UserError
from leyden.data.shards import TokenFile, TokenShards
from leyden.data.token_files import formats
from leyden.tokenizer import Tokenizer

_BLOCK_TOKENS = 1 << 20
_READERS = {".ds": formats.read_datatrove, ".npy": formats.read_npy, ".bin": formats.read_bin}


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
            largest token in them (each is read once).
        document_token: the token that ends each document, for formats that do not say where documents end (``.bin``
            of nanoGPT and llm.c, ``.npy`` without ``.csv.gz``). llm.c begins documents with it; then it is taken as
            the first of each where the file begins with it. None: such a file is one document.

    Raises:
        UserError: no such files; one is truncated, of another format, or of tokens that are no integers.
    """
    files = _find([paths] if isinstance(paths, Path) else paths)
    opened = [_READERS[path.suffix](path, document_token) for path in files]
    largest = max(_largest(file.tokens, path) for file, path in zip(opened, files, strict=True))
    if tokenizer is not None and largest >= tokenizer.vocab_size:
        raise UserError(
            f"{files[0].parent} holds token {largest}, and the tokenizer has {tokenizer.vocab_size}: another one made "
            "these files. Name that one."
        )
    vocab_size = tokenizer.vocab_size if tokenizer else largest + 1
    return TokenShards.over(opened, files[0].parent, _fingerprint(opened), vocab_size=vocab_size)


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


def _largest(tokens: np.ndarray, path: Path) -> int:
    """The largest token; a block at a time, so that memory does not grow with the file."""
    blocks = [tokens[start : start + _BLOCK_TOKENS] for start in range(0, len(tokens), _BLOCK_TOKENS)]
    if min((int(block.min()) for block in blocks), default=0) < 0:
        raise UserError(f"{path} holds a negative token; its integers are wider or narrower than they seem.")
    return max((int(block.max()) for block in blocks), default=0)


def _fingerprint(files: Sequence[TokenFile]) -> str:
    """A hash of all tokens, of where documents end, and of what is learned."""
    digest = hashlib.sha256(b"token files")
    for file in files:
        sums = [
            zlib.crc32(file.tokens[n : n + _BLOCK_TOKENS].tobytes()) for n in range(0, len(file.tokens), _BLOCK_TOKENS)
        ]
        digest.update(f"{len(file.tokens)} {file.tokens.dtype.str} {sums}".encode())
        digest.update(np.ascontiguousarray(file.lengths).data)
        if file.learned is not None:
            digest.update(file.learned.data)
    return digest.hexdigest()
