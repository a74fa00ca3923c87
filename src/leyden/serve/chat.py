"""A conversation that keeps what the model has read between turns."""

from collections.abc import Iterator

from leyden.core.errors import UserError
from leyden.serve.context import Context
from leyden.serve.engine import Engine
from leyden.serve.sampling import Sampling


class Chat:
    """Turns of one conversation, each read on from the last.

    An answer equals that of a run over the whole conversation, rendered anew: the context is kept as far as its tokens
    are those of the rendered text. That is all of it as a rule; where the drawn tokens are not the ones that the
    tokenizer gives for their text (or a stop string cut it), it is all up to the last answer, which a snapshot holds.

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
        self._context = engine.context()
        self._before_answer = engine.context()

    def send(self, text: str) -> Iterator[str]:
        """Say ``text``; the answer, piece by piece.

        The turn is part of the conversation from the first piece on. Stop iterating (or press Ctrl-C) at any moment:
        the next turn goes on from what was said.

        Raises:
            UserError: at once, where the conversation no longer fits into the model's positions.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        tokens = self._tokenizer.encode_chat(messages)
        context = self._held(tokens)
        unread = tokens[len(context.tokens) :]
        context.check(unread)
        return self._answer(messages, context, unread)

    def _held(self, tokens: list[int]) -> Context:
        """The longest context at hand that ``tokens`` go on from."""
        for context in (self._context, self._before_answer):
            length = len(context.tokens)
            if length < len(tokens) and context.tokens == tokens[:length]:
                return context if context is self._context else context.fork()
        return self._engine.context()

    def _answer(self, messages: list[dict[str, str]], context: Context, unread: list[int]) -> Iterator[str]:
        answer = {"role": "assistant", "content": ""}
        self._context = context
        try:
            for chunk in self._engine.continue_from(context, unread, self.sampling):
                if self.messages is not messages:  # the first token: the prompt has been read, and no more
                    self._before_answer = context.fork()
                    self.messages = messages
                    messages.append(answer)
                answer["content"] += chunk.text
                if chunk.text:
                    yield chunk.text
        except (Exception, KeyboardInterrupt):  # inside the model: what its cache holds may be torn
            self._context = self._engine.context()
            raise
