"""Decoding while tokens arrive: text comes out as soon as its last byte is there, never half a character."""

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leyden.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes one sequence token by token; all that it returns, joined, is ``tokenizer.decode(ids)``."""

    def __init__(self, tokenizer: "Tokenizer", *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Take one token; return the text that is complete with it, which may be empty."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """End the sequence: return U+FFFD for a character left unfinished, else nothing."""
        return self._decoder.decode(b"", final=True)
