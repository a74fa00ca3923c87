"""What the model has read, and reading on from there."""

from collections.abc import Sequence
from typing import Self

import torch

from leyden.core.errors import UserError
from leyden.model import Cache, HybridLM, NativeDecoder


class Context:
    """The tokens one sequence consists of so far, with the model's memory of them.

    Args:
        model: in evaluation mode.
        chunk_tokens: how many tokens go through the model at once; bounds the memory that a long prompt takes.
        decoder: reads single tokens behind others; the model itself does where None.

    Attributes:
        tokens: what was read, in order. An interrupted :meth:`read` leaves those that were read whole.
    """

    def __init__(self, model: HybridLM, chunk_tokens: int, decoder: NativeDecoder | None = None) -> None:
        self.tokens: list[int] = []
        self._decoder = decoder
        self._model = model
        self._chunk_tokens = chunk_tokens
        self._cache = Cache(model.config, batch_size=1)

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read at least one token; the logits [V] of the one after them, in float32.

        Raises:
            UserError: a token outside the vocabulary, or more tokens than the model has positions.
        """
        self.check(tokens)
        if self._decoder is not None and self.tokens and len(tokens) == 1:
            logits = self._decoder.step(tokens[0], self._cache)
            self.tokens.append(tokens[0])
            return logits
        device = self._model.lm_head.weight.device
        hidden = torch.empty(0)
        with torch.inference_mode():
            for start in range(0, len(tokens), self._chunk_tokens):
                chunk = list(tokens[start : start + self._chunk_tokens])
                ids = torch.tensor([chunk], device=device)
                hidden = self._model.features(ids, cache=self._cache, last=1).hidden[0, -1]
                self.tokens += chunk
            return self._model.logits(hidden)

    def fork(self) -> Self:
        """A copy that reads on independently."""
        copy = type(self)(self._model, self._chunk_tokens, self._decoder)
        copy.tokens = list(self.tokens)
        copy._cache = self._cache.clone()
        return copy

    @property
    def room(self) -> int:
        """How many more tokens the model has positions for."""
        return self._model.config.max_position_embeddings - len(self.tokens)

    def check(self, tokens: Sequence[int]) -> None:
        """Raise what :meth:`read` would, before anything is read."""
        if len(tokens) > self.room:
            raise UserError(
                f"the text has {len(self.tokens) + len(tokens)} tokens and the model "
                f"{self._model.config.max_position_embeddings} positions "
                "(max_position_embeddings); shorten it, or take a model trained for longer contexts."
            )
        vocabulary = self._model.config.vocab_size
        wrong = next((token for token in tokens if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise UserError(f"token {wrong} is not in the model's vocabulary; ids lie in 0..{vocabulary - 1}.")
