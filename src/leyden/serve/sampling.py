"""How the next token is chosen: greedily, or drawn from a filtered distribution."""

import random
from typing import Any, Self

import torch
from pydantic import Field, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator

from leyden.core.config import Config, explain
from leyden.core.errors import UserError


class Sampling(Config):
    """What to draw, and when to stop.

    Raises:
        UserError: a value that is not allowed; the message names the field.
    """

    max_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    """Logits are divided by it; 0 takes the most probable token."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw among the k most probable tokens. None: among all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the fewest tokens whose probabilities add up to p (after ``top_k``)."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Draw among tokens at least this fraction as probable as the most probable one."""
    seed: int | None = None
    """The same seed and prompt give the same tokens, whatever else is asked for. None: drawn from the system."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these that appears."""
    ignore_eos: bool = False
    """Go on after the tokens that end a turn or a document."""

    @model_validator(mode="wrap")
    @classmethod
    def _user_error(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise UserError(f"sampling: {explain(cls, data, error)}") from None

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty stop string would end every text at once; leave it out")
        return value


class Sampler:
    """Draws the tokens of one sequence; each draw uses one uniform number, from a generator of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = random.Random(sampling.seed)

    def __call__(self, logits: torch.Tensor) -> int:
        """The next token, from logits [V] in float32."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        probabilities, tokens = distribution(logits, self._sampling)
        total = probabilities.to(torch.float64).cumsum(0)
        place = int(torch.searchsorted(total, self._random.random() * total[-1], right=True))
        place = min(place, total.shape[0] - 1)
        return place if tokens is None else int(tokens[place])


def distribution(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a token is drawn from, at a temperature above 0.

    In order of falling probability each filter keeps the head of the list, so together they keep the shortest head.

    Args:
        logits: [V] float32.
        sampling: the temperature and the filters.

    Returns:
        Probabilities [K], not summing to 1 where tokens were filtered out, and their token ids [K]; None for the ids
        where nothing was filtered: then K = V.
    """
    scaled = logits / sampling.temperature
    if sampling.top_k is None and sampling.top_p == 1 and sampling.min_p == 0:
        return scaled.softmax(-1), None
    top_k = min(sampling.top_k or scaled.shape[0], scaled.shape[0])
    ordered, tokens = scaled.topk(top_k)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(0) - probabilities
    kept = (before < sampling.top_p) & (probabilities >= sampling.min_p * probabilities[0])
    num_kept = max(1, int(kept.sum()))
    return probabilities[:num_kept], tokens[:num_kept]
