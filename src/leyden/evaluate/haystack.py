"""The haystack: text to hide a needle in, as tokens, tokenised once and no further than it is needed."""

import hashlib
import itertools
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from leyden.data import read_documents, standard_library_sources
from leyden.tokenizer import Tokenizer

_AT_ONCE = 64
"""Documents that are tokenised together."""
_BETWEEN = "\n\n"
"""What stands between two documents."""
_LINE_SEARCH = 512
"""How many tokens before a place the end of a line is looked for."""


class Haystack:
    """Documents end to end, as one endless row of tokens: after the last document the first comes again.

    Args:
        tokenizer: of the model.
        paths: files and folders of documents; empty for the sources of the Python standard library.
        texts: the documents themselves, instead of ``paths``.

    Attributes:
        source: what it is made of: a digest of the texts, or which Python's library it is.

    Raises:
        UserError: nothing in ``paths`` can be read.
    """

    def __init__(self, tokenizer: Tokenizer, paths: Sequence[Path] = (), texts: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        if paths or texts:
            texts = texts or [document.text for document in read_documents(paths, [])]
            digest = hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8)
            self.source = f"text {digest.hexdigest()}"
            self._texts: Iterator[str] = iter(texts)
        else:
            self.source = f"standard library of Python {platform.python_version()}"
            self._texts = _standard_library()
        self._ids = np.zeros(0, np.int32)
        self._ended = False

    def tokens(self, count: int, start: int = 0) -> np.ndarray:
        """[count] int32, from the ``start``-th token on."""
        self._read(start + count)
        return np.take(self._ids, np.arange(start, start + count), mode="wrap")

    def line_end(self, ids: np.ndarray, place: int) -> int:
        """The nearest place at or before ``place`` in ``ids`` where a line has ended; ``place`` where none is near."""
        for end in range(place, max(0, place - _LINE_SEARCH), -1):
            if self._tokenizer.token_bytes(int(ids[end - 1])).endswith(b"\n"):
                return end
        return place

    def _read(self, count: int) -> None:
        """See to ``count`` tokens, or to all that there are."""
        parts, have = [self._ids], len(self._ids)
        while have < count and not self._ended:
            texts = list(itertools.islice(self._texts, _AT_ONCE))
            self._ended = not texts
            parts += self._tokenizer.encode_batch([text.rstrip() + _BETWEEN for text in texts])
            have = sum(map(len, parts))
        self._ids = np.concatenate(parts)


def _standard_library() -> Iterator[str]:
    return (document.text for document in read_documents(standard_library_sources(), []))
