"""What bits per byte are to be beaten: a general compressor's, and a model's that ignores order."""

import lzma
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.tokenizer import Tokenizer

PIECE_BYTES = 4096
"""About the context that a small model makes use of."""

_LEAST_DICTIONARY_BYTES = 4096  # of liblzma


def xz_bits_per_byte(documents: Sequence[str], piece_bytes: int | None = PIECE_BYTES) -> float:
    """Bits that xz (LZMA2, preset 9 extreme, a raw stream without container) spends on a byte.

    Args:
        documents: the texts.
        piece_bytes: join the documents and compress so many bytes at a time, each piece by itself; None: compress
            each document by itself, whole.

    Raises:
        UserError: the documents hold no bytes.
    """
    pieces = [text.encode() for text in documents]
    if piece_bytes is not None:
        joined = b"".join(pieces)
        pieces = [joined[start : start + piece_bytes] for start in range(0, len(joined), piece_bytes)]
    num_bytes = sum(map(len, pieces))
    if not num_bytes:
        raise UserError("xz needs text; the documents given hold no bytes.")
    compressed = 0
    title = "xz, whole documents" if piece_bytes is None else f"xz, {piece_bytes} bytes at a time"
    # lzma lets go of the interpreter's lock while it compresses, so threads suffice.
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress(title, num_bytes, "bytes") as bar:
        for piece, size in zip(pieces, pool.map(_xz_bytes, pieces), strict=True):
            compressed += size
            bar.advance(len(piece))
    return 8 * compressed / num_bytes


def _xz_bytes(piece: bytes) -> int:
    # A dictionary no longer than the data finds the same matches as preset 9's 64 MiB, which take 700 MB to set up.
    dictionary = max(_LEAST_DICTIONARY_BYTES, len(piece))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    return len(lzma.compress(piece, format=lzma.FORMAT_RAW, filters=filters))


def token_counts(tokenizer: Tokenizer, documents: Sequence[str]) -> np.ndarray:
    """How often each token occurs in ``documents``, an eod closing each: int64 [vocab]."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for ids in tokenizer.encode_batch(documents):
        counts += np.bincount(ids, minlength=tokenizer.vocab_size)
    counts[tokenizer.eod_id] += len(documents)
    return counts


def unigram_bits_per_byte(tokenizer: Tokenizer, train_counts: np.ndarray, documents: Sequence[str]) -> float:
    """Bits per byte of a model that knows each token's frequency and nothing of its neighbours.

    The probabilities are ``(count + 1) / (total + vocab)``; text tokens and eods are predicted, as
    :func:`leyden.evaluate.bits_per_byte` does.

    Args:
        tokenizer: the tokens.
        train_counts: [vocab], occurrences in the training documents (:func:`token_counts`).
        documents: the held-out texts.

    Raises:
        UserError: the documents hold no bytes, or the counts are of another vocabulary.
    """
    num_bytes = sum(len(text.encode()) for text in documents)
    if not num_bytes:
        raise UserError("a unigram model needs text; the documents given hold no bytes.")
    if train_counts.shape != (tokenizer.vocab_size,):
        raise UserError(
            f"token counts of {train_counts.shape[0]} tokens do not fit a vocabulary of {tokenizer.vocab_size}."
        )
    bits = -np.log2((train_counts + 1) / (train_counts.sum() + tokenizer.vocab_size))
    return math.fsum(bits * token_counts(tokenizer, documents)) / num_bytes


def baselines(tokenizer: Tokenizer, train_counts: np.ndarray, documents: Sequence[str]) -> dict[str, float]:
    """Every baseline of ``documents``, in bits per byte, under the names that ``eval.jsonl`` and the report use."""
    return {
        "unigram_tokens": unigram_bits_per_byte(tokenizer, train_counts, documents),
        "xz_4096": xz_bits_per_byte(documents),
        "xz_documents": xz_bits_per_byte(documents, piece_bytes=None),
    }
