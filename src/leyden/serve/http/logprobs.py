"""Log-probabilities and pieces of text, in the shapes of the API."""

from collections.abc import Iterable, Sequence

from leyden.serve.http.protocol.chat import ChatLogprob, TopLogprob
from leyden.serve.http.protocol.common import PromptLogprob
from leyden.serve.http.protocol.completions import CompletionLogprobs
from leyden.serve.sampling import TokenLogprobs
from leyden.tokenizer import StreamDecoder, Tokenizer

_LEAST = -9999.0
"""Stands for a probability of zero, since JSON has no infinity; OpenAI's number."""


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself: its text, or, of a piece of a character, its bytes as ``bytes:\\xe2\\x98``; OpenAI's way."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """``logprob`` as JSON can tell it."""
    return max(logprob, _LEAST)


def prompt_logprobs(
    tokenizer: Tokenizer, places: Sequence[TokenLogprobs | None], num_top: int
) -> list[dict[str, PromptLogprob] | None]:
    """vLLM's shape: for each place, tokens by their ids; of one beyond the most probable, the rank is not known."""
    return [None if place is None else _by_id(tokenizer, place, num_top) for place in places]


def _by_id(tokenizer: Tokenizer, place: TokenLogprobs, num_top: int) -> dict[str, PromptLogprob]:
    ranked = [(token, logprob, rank) for rank, (token, logprob) in enumerate(place.top[:num_top], start=1)]
    ranked = [(place.token, place.logprob, None), *ranked]  # where it is among the others, its rank replaces None
    return {
        str(token): PromptLogprob(logprob=finite(logprob), rank=rank, decoded_token=token_text(tokenizer, token))
        for token, logprob, rank in ranked
    }


class CompletionLogprobsWriter:
    """Writes the log-probabilities of one completion, piece by piece.

    An offset is where in the text the token begins, in characters; tokens that share a character share an offset.

    Args:
        tokenizer: gives tokens their texts.
        num_top: of the most probable tokens, how many are told.
    """

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._text = StreamDecoder(tokenizer, skip_special=True)
        self._offset = 0

    def write(self, tokens: Iterable[int], places: Iterable[TokenLogprobs | None]) -> CompletionLogprobs:
        """The next tokens; a place is None where nothing is known, as of a prompt's first token."""
        written = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token, place in zip(tokens, places, strict=True):
            written.tokens.append(token_text(self._tokenizer, token))
            written.token_logprobs.append(None if place is None else finite(place.logprob))
            written.top_logprobs.append(None if place is None else self._top(place))
            written.text_offset.append(self._offset)
            self._offset += len(self._text.push(token))
        return written

    def _top(self, place: TokenLogprobs) -> dict[str, float]:
        """The most probable tokens and the one that stands there; of two with the same text, the more probable."""
        top: dict[str, float] = {}
        for token, logprob in (*place.top[: self._num_top], (place.token, place.logprob)):
            top.setdefault(token_text(self._tokenizer, token), finite(logprob))
        return top


def joined(pieces: Iterable[CompletionLogprobs]) -> CompletionLogprobs:
    """The pieces of one completion, put together."""
    whole = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for piece in pieces:
        whole.tokens += piece.tokens
        whole.token_logprobs += piece.token_logprobs
        whole.top_logprobs += piece.top_logprobs
        whole.text_offset += piece.text_offset
    return whole


def chat_logprobs(tokenizer: Tokenizer, places: Iterable[TokenLogprobs], num_top: int) -> list[ChatLogprob]:
    """The shape of a chat, where a token comes with its bytes."""

    def told(token: int, logprob: float) -> TopLogprob:
        data = tokenizer.token_bytes(token)
        return TopLogprob(token=data.decode(errors="replace"), logprob=finite(logprob), bytes=list(data))

    return [
        ChatLogprob(
            **told(place.token, place.logprob).model_dump(),
            top_logprobs=[told(token, logprob) for token, logprob in place.top[:num_top]],
        )
        for place in places
    ]
