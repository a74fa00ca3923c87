"""Text to ids: by ``tokenizers``, or by the fast encoder once it pays; and what of a text is a special token."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from leyden.core.errors import UserError
from leyden.core.log import log_once
from leyden.core.panics import panics_are_user_errors
from leyden.tokenizer.fast import FastEncoder, fast_encoder
from leyden.tokenizer.words import num_bytes

_FAST_FROM_BYTES = 1_000_000
"""Once so much text has been encoded, making the fast encoder (about a second at 200K tokens) pays."""
_BYTES_PER_THREAD = 100_000


class GaveUpError(UserError):
    """A text on which the tokenizer's own regular expression gives up; other texts can be encoded."""


class Encoder:
    """Encodes text, on all cores where there is much of it.

    Args:
        backend: byte-level, with ``encode_special_tokens`` on: the spelling of a special token in text is text.
        special: the special tokens, by id.
    """

    def __init__(self, backend: Backend, special: Mapping[int, AddedToken]) -> None:
        self._backend = backend
        self._special = special
        self._encoded_bytes = 0

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text as an int32 array [num_tokens]; special tokens in them stay text.

        Raises:
            UserError: one of them is no string, holds a lone surrogate, or is too much for the tokenizer's own regular
                expression.
        """
        sizes = [_num_bytes(text) for text in texts]
        self._encoded_bytes += sum(sizes)
        if self._encoded_bytes < _FAST_FROM_BYTES or self._fast is None:
            return self._encode_slowly(texts)
        if len(texts) > 1 and sum(sizes) > _BYTES_PER_THREAD:
            with ThreadPoolExecutor(_num_threads()) as threads:
                found = list(threads.map(self._fast.encode, texts, sizes))
        else:
            found = list(map(self._fast.encode, texts, sizes))
        missing = [index for index, ids in enumerate(found) if ids is None]
        others = dict(zip(missing, self._encode_slowly([texts[index] for index in missing]), strict=True))
        return [others[index] if ids is None else ids for index, ids in enumerate(found)]

    def encode_special(self, text: str, mark: str = "") -> list[int]:
        """The ids of ``text``, in which the spelling of a special token becomes that token.

        Args:
            text: any string of Unicode characters.
            mark: breaks the spellings that are to stay text; it is taken out of what lies between special tokens.

        Raises:
            UserError: as :meth:`encode`.
        """
        ids: list[int] = []
        start = 0
        for match in self._special_pattern.finditer(text):
            ids += self._encode_between(text[start : match.start()], mark)
            ids.append(self._special_ids[match[match.lastindex or 0]])
            start = match.end()
        return ids + self._encode_between(text[start:], mark)

    def _encode_between(self, text: str, mark: str) -> list[int]:
        return self.encode([text.replace(mark, "") if mark else text])[0].tolist()

    def _encode_slowly(self, texts: Sequence[str]) -> list[np.ndarray]:
        """By ``tokenizers``; "fast" leaves out where in the text each token stood, long texts take half the time."""
        longest = max(map(len, texts), default=0)
        message = (
            f"A text of up to {longest} characters cannot be encoded: the tokenizer's own regular expression gives up "
            "on it. Leave the text out or shorten its longest run of like characters, or take another tokenizer."
        )
        with panics_are_user_errors(message, GaveUpError):
            encodings = _with_threads_or_without(
                lambda: self._backend.encode_batch_fast(texts, add_special_tokens=False)
            )
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    @cached_property
    def _fast(self) -> FastEncoder | None:
        encoder = fast_encoder(self._backend)
        if isinstance(encoder, str):
            log_once(__name__, f"Text is encoded by tokenizers, not by the several times faster tiktoken: {encoder}.")
            return None
        return encoder

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        return {token.content: index for index, token in self._special.items()}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """Matches a special token, the longest that fits, and the white space that it swallows."""
        longest_first = sorted(self._special.values(), key=lambda token: -len(token.content))
        alternatives = [
            (r"\s*" if token.lstrip else "") + f"({re.escape(token.content)})" + (r"\s*" if token.rstrip else "")
            for token in longest_first
        ]
        return re.compile("|".join(alternatives))


def _with_threads_or_without(encode: Callable[[], Any]) -> Any:
    """What ``encode`` gives; where ``tokenizers`` may not start its threads, by this one alone from here on."""
    try:
        return encode()
    except BaseException as error:
        if type(error).__name__ != "PanicException" or "thread pool" not in str(error):
            raise
    log_once(__name__, "Text is encoded by one thread: the system's limit (ulimit -u) allows no more.")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return encode()


def _num_bytes(text: Any) -> int:
    """UTF-8 bytes of ``text``."""
    if not isinstance(text, str):
        raise UserError(f"Only text can be encoded, not {type(text).__name__}.")
    return num_bytes(text)


def _num_threads() -> int:
    """As many as ``tokenizers`` takes."""
    return int(os.environ.get("RAYON_NUM_THREADS", "0")) or os.cpu_count() or 1
