"""Incremental detokenisation: whole characters only, and nothing that may turn out to be a stop string."""

from leyden.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """Turns tokens into text that never has to be taken back; special tokens have none.

    Args:
        tokenizer: None gives no text.
        stop: the text ends before the first of these.

    Attributes:
        stopped: whether a stop string was met.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: tuple[str, ...]) -> None:
        self.stopped = False
        self._decoder = None if tokenizer is None else StreamDecoder(tokenizer, skip_special=True)
        self._stop = stop
        self._held = ""

    def push(self, token: int) -> str:
        """The text that is certain once ``token`` is known."""
        return "" if self._decoder is None else self._release(self._decoder.push(token))

    def finish(self) -> str:
        """What was held back, once no token follows; a character cut short becomes U+FFFD."""
        text = "" if self._decoder is None else self._release(self._decoder.finish())
        held, self._held = self._held, ""
        return text + held

    def _release(self, new: str) -> str:
        if not self._stop:
            return new
        if self.stopped:
            return ""
        text = self._held + new
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        safe = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[safe:]
        return text[:safe]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` begin ``stop`` without completing it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
