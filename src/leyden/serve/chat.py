"""A conversation, of which each turn reads no more than what is new."""

from collections.abc import Iterator

from leyden.core.errors import UserError
from leyden.serve.completion import Chunk
from leyden.serve.engine import Engine
from leyden.serve.sampling import Sampling


class Chat:
    """Turns of one conversation.

    An answer is that of a run over the whole conversation, rendered anew: the engine's prefix cache saves reading again
    what was read before.

    Args:
        engine: with a tokenizer.
        system: what the model is told before the first turn.
        sampling: of every answer; may be changed between turns.

    Attributes:
        messages: the conversation so far. An answer that was not read to its end stays as far as it came.
    """

    def __init__(self, engine: Engine, *, system: str | None = None, sampling: Sampling | None = None) -> None:
        if engine.tokenizer is None:
            raise UserError("a chat needs a tokenizer; this engine has none.")
        self.sampling = sampling or Sampling()
        self.messages: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
        self._engine = engine
        self._tokenizer = engine.tokenizer

    def send(self, text: str) -> Iterator[str]:
        """Say ``text``; the answer, piece by piece.

        The turn is part of the conversation from the first piece on. Stop iterating (or press Ctrl-C) at any moment:
        the next turn goes on from what was said.

        Raises:
            UserError: at once, where the conversation no longer fits into the model's positions.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        chunks = self._engine.stream(self._tokenizer.encode_chat(messages), self.sampling, settle=True)
        return self._answer(messages, chunks)

    def _answer(self, messages: list[dict[str, str]], chunks: Iterator[Chunk]) -> Iterator[str]:
        answer = {"role": "assistant", "content": ""}
        for chunk in chunks:
            if self.messages is not messages:
                self.messages = messages
                messages.append(answer)
            answer["content"] += chunk.text
            if chunk.text:
                yield chunk.text
