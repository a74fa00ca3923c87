"""A conversation with an engine: each turn prefills the new tokens alone."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

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

    @classmethod
    def resume(cls, engine: Engine, path: Path, sampling: Sampling | None = None) -> Self:
        """The conversation that :meth:`save` wrote, which goes on as it would have without an end in between.

        Raises:
            UserError: there is no such file, it is torn, or another model's.
        """
        chat = cls(engine, sampling=sampling)
        chat.messages = engine.load_conversation(path).messages
        return chat

    def save(self, path: Path) -> int:
        """Write the conversation to ``path``, with what the model has read of it.

        Returns:
            How many of its tokens will not be read again.

        Raises:
            UserError: the file cannot be written.
        """
        tokens = self._tokenizer.encode_chat(self.messages, add_generation_prompt=False) if self.messages else []
        return self._engine.save_conversation(path, tokens, self.messages)

    def send(self, text: str) -> Iterator[str]:
        """Say ``text``; the answer, piece by piece.

        The turn is part of the conversation from the first piece on. Stop iterating (or press Ctrl-C) at any moment:
        the next turn goes on from what was said.

        Raises:
            UserError: at once, where the conversation no longer fits into the model's positions.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        return self._answer(messages, self._engine.stream(self._tokenizer.encode_chat(messages), self.sampling))

    def _answer(self, messages: list[dict[str, str]], chunks: Iterator[Chunk]) -> Iterator[str]:
        answer = {"role": "assistant", "content": ""}
        for chunk in chunks:
            if self.messages is not messages:
                self.messages = messages
                messages.append(answer)
            answer["content"] += chunk.text
            if chunk.text:
                yield chunk.text
        # As the next turn will render it: its tokens need not be those that were drawn. Some templates refuse a chat
        # that ends with an answer; it is read with the next turn then.
        with suppress(UserError):
            self._engine.read_ahead(self._tokenizer.encode_chat(self.messages, add_generation_prompt=False))
        self._engine.rest()
