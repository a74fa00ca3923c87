"""Documents that have just been made, as shards of tokens without files."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leyden.core.errors import UserError
from leyden.data.shards import END, TOKEN, TokenFile, TokenShards


def shards_in_memory(
    documents: Sequence[Sequence[int] | np.ndarray],
    *,
    vocab_size: int,
    learned: Sequence[Sequence[bool] | np.ndarray] | None = None,
    ids: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> TokenShards:
    """Documents without files, as rollouts are: they give the batches that the same documents in files would.

    Args:
        documents: the token ids of each, with its first and last token (bos, eod) where these belong to it; an
            empty one is no document.
        vocab_size: one more than the largest id there may be.
        learned: of each document, which tokens are to be learned; None: all.
        ids, sources: of each document; None: it is known by its number.

    Raises:
        UserError: there are no tokens, they are no ids of the vocabulary, or another argument has not one entry for
            each document.
    """
    lengths = np.array([len(document) for document in documents], END)
    for name, given in (("learned", learned), ("ids", ids), ("sources", sources)):
        if given is not None and len(given) != len(lengths):
            raise UserError(f"{len(lengths)} documents were given, and {name} of {len(given)}; give as many.")
    if not lengths.sum():
        raise UserError("There are no tokens in the documents; give at least one document that has some.")
    tokens, bits = _joined(documents, vocab_size), None
    if learned is not None:
        mask = np.concatenate([np.asarray(part, bool) for part in learned])
        if [len(part) for part in learned] != lengths.tolist():
            raise UserError("learned says of each token of a document whether it is learned; the lengths differ.")
        bits = np.packbits(mask, bitorder="little")
    found = hashlib.sha256(lengths.tobytes() + tokens.tobytes() + (b"" if bits is None else bits.tobytes()))
    columns = {name: column for name, column in (("id", ids), ("source", sources)) if column is not None}
    found.update(json.dumps({name: list(column) for name, column in columns.items()}).encode())
    file = TokenFile(tokens, np.cumsum(lengths) - lengths, lengths, bits, columns)
    return TokenShards.over([file], Path("memory"), found.hexdigest(), vocab_size=vocab_size)


def _joined(documents: Sequence[Sequence[int] | np.ndarray], vocab_size: int) -> np.ndarray:
    """The ids of all documents, one after another: [T] int32."""
    arrays = [np.asarray(document) for document in documents if len(document)]
    for array in arrays:
        if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= vocab_size:
            raise UserError(
                f"A document is a list of token ids, whole numbers from 0 to {vocab_size - 1}; given: "
                f"{array.dtype} {list(array.shape)} with values from {array.min()} to {array.max()}."
            )
    return np.concatenate(arrays, dtype=TOKEN)
