"""Changes to logits: penalties, biases and suppressed end tokens, updated with each token."""

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import torch

from leyden.core.transfers import send
from leyden.serve.sampling.config import Sampling


class Adjustments:
    """A short table of tokens whose logits change: by a factor (repetition), then by an offset (all else).

    A drawn token changes one line of it, so a step costs what the lines cost, not what the vocabulary does.

    Args:
        sampling: the penalties, the bias and ``min_tokens``.
        prompt_tokens: which the repetition penalty counts, too.
        end_tokens: not to be drawn before ``min_tokens``.

    Attributes:
        size: how many lines are in use.
        tokens: [capacity] int64.
        factors, offsets: [capacity] float32.
    """

    def __init__(self, sampling: Sampling, prompt_tokens: Sequence[int], end_tokens: Iterable[int]) -> None:
        self._sampling = sampling
        self._counted = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._repetition = sampling.repetition_penalty != 1
        seen = np.unique(np.asarray(prompt_tokens, np.int64)) if self._repetition else np.empty(0, np.int64)
        self.size = len(seen)
        self.tokens = seen
        self.factors = np.full(len(seen), sampling.repetition_penalty, np.float32)
        self.offsets = np.zeros(len(seen), np.float32)
        self._line_of = dict(zip(seen.tolist(), range(len(seen)), strict=True))
        self._counts: dict[int, int] = {}
        self._num_drawn = 0
        self._withheld = frozenset(end_tokens) if sampling.min_tokens else frozenset()
        for token in {*sampling.logit_bias, *self._withheld}:
            self._set_offset(token)

    @classmethod
    def of(cls, sampling: Sampling, prompt_tokens: Sequence[int], end_tokens: Iterable[int]) -> Self | None:
        """The table, or None where nothing will ever stand in it."""
        table = cls(sampling, prompt_tokens, end_tokens)
        return table if table.size or table._repetition or table._counted else None

    def record(self, token: int) -> None:
        """A token was drawn."""
        self._num_drawn += 1
        if self._repetition or self._counted:
            self._counts[token] = self._counts.get(token, 0) + 1
            self._set_offset(token)
            if self._repetition:
                self.factors[self._line_of[token]] = self._sampling.repetition_penalty
        if self._num_drawn == self._sampling.min_tokens:
            withheld, self._withheld = self._withheld, frozenset()
            for end in withheld:
                self._set_offset(end)

    def _set_offset(self, token: int) -> None:
        line = self._line_of.get(token)
        if line is None:
            line = self._add_line(token)
        own, count = self._sampling, self._counts.get(token, 0)
        penalty = own.presence_penalty * (count > 0) + own.frequency_penalty * count
        self.offsets[line] = -np.inf if token in self._withheld else own.logit_bias.get(token, 0.0) - penalty

    def _add_line(self, token: int) -> int:
        line = self.size
        if line == len(self.tokens):
            room = max(64, line)
            self.tokens, self.factors, self.offsets = (
                np.concatenate([column, np.zeros(room, column.dtype)])
                for column in (self.tokens, self.factors, self.offsets)
            )
        self.tokens[line], self.factors[line] = token, 1
        self._line_of[token] = line
        self.size += 1
        return line


def adjust(logits: torch.Tensor, tables: Sequence[tuple[int, Adjustments]]) -> None:
    """Change rows of logits [R, V] in place, each (by its number) by its table."""
    width = logits.shape[1]
    places, factors, offsets = send(
        [
            np.concatenate([row * width + own.tokens[: own.size] for row, own in tables]),
            np.concatenate([own.factors[: own.size] for _, own in tables]),
            np.concatenate([own.offsets[: own.size] for _, own in tables]),
        ],
        logits.device,
    )
    flat = logits.view(-1)
    old = flat[places]
    new = torch.where(old > 0, old / factors, old * factors) + offsets
    flat[places] = new.clamp_(max=torch.finfo(new.dtype).max)
