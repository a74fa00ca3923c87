"""A reward model that grades responses: the score at the last token of a response, as in training."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from leyden.align.chats.chat import Message, prompt_of
from leyden.align.chats.tokens import encode_learned
from leyden.align.rewards.reward import Reward
from leyden.checkpoint import load
from leyden.core.device import default_device
from leyden.core.errors import UserError
from leyden.data.readers.problem import Problem
from leyden.evaluate.likelihood import in_rows
from leyden.model import HybridLM, ModelConfig, evaluation_mode
from leyden.tokenizer import Tokenizer

Row = Mapping[str, Any]
Encoded = tuple[np.ndarray, Sequence[int]]
"""[T] int32 tokens, and the places among them at which scores are read."""

_TOKENS_AT_ONCE = 8192


def logistic(score: float) -> float:
    """sigma of a score, without an overflow."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def check_grades(config: ModelConfig, tokenizer: Tokenizer | None, name: str) -> None:
    """Make sure that a model can grade.

    Raises:
        UserError: there is no score head, or no tokenizer with a chat template.
    """
    if not config.score_head:
        raise UserError(
            f'{name} has no score head, and cannot grade; train a reward model from it (objective = "reward", '
            "docs/alignment.md), or name one."
        )
    if tokenizer is None or tokenizer.chat_template is None:
        raise UserError(f"{name} has no tokenizer with a chat template, by which a response is read.")


class RewardModel:
    """A model with a score head, and its tokenizer.

    Args:
        model: with a score head, on any device.
        tokenizer: with a chat template.
        name: of the model, for errors.

    Raises:
        UserError: there is no score head, or no chat template.
    """

    def __init__(self, model: HybridLM, tokenizer: Tokenizer | None, name: str) -> None:
        check_grades(model.config, tokenizer, name)
        assert tokenizer is not None, "what grades has a tokenizer"
        self._model, self._tokenizer = model, tokenizer

    @classmethod
    def find(cls, name: str | Path) -> Self:
        """The model that ``name`` means: a directory, a run, a checkpoint or a hub id; on a GPU where there is one.

        Raises:
            UserError: there is none, or it cannot grade.
        """
        model, tokenizer = load(name, dtype="auto", device=default_device())
        return cls(model, tokenizer, str(name))

    def grade(self, row: Row) -> Reward:
        """The record of one row; see :meth:`grade_all`.

        Raises:
            UserError: the row has no prompt that the template takes, or is longer than the model's positions.
        """
        return self._record(self._scores([self._encode(row)])[0])

    def grade_all(self, rows: Sequence[Row]) -> Iterator[Reward | str]:
        """The record of each row, in order; in place of one that cannot be graded, why.

        Args:
            rows: each with ``prompt`` (a text, or messages) and ``response``.
        """

        def encoded() -> Iterator[Encoded | str]:
            for row in rows:
                try:
                    yield self._encode(row)
                except UserError as error:
                    yield str(error)

        def size(one: Encoded | str) -> int:
            return 0 if isinstance(one, str) else len(one[0])

        for group in in_rows(encoded(), size, _TOKENS_AT_ONCE):
            scores = iter(self._scores([one for one in group if not isinstance(one, str)]))
            for one in group:
                yield one if isinstance(one, str) else self._record(next(scores))

    def _encode(self, row: Row) -> Encoded:
        """The prompt and the response as the template lays them out, up to the token that ends it, and its place."""
        prompt = self._prompt(row)
        answer: Message = {"role": "assistant", "content": row["response"]}
        learned = [False] * len(prompt) + [True]
        ids, _ = encode_learned((*prompt, answer), learned, (), self._tokenizer)
        return self._fitting(ids, [len(ids) - 1])

    def _prompt(self, row: Row) -> tuple[Message, ...]:
        try:
            return prompt_of(row)
        except Problem as problem:
            raise UserError(f"its prompt cannot be read: {problem.reason} ({problem.detail})") from None

    def _fitting(self, ids: np.ndarray, places: Sequence[int]) -> Encoded:
        """Both, if the model has positions for so many tokens."""
        if len(ids) > self._model.config.max_position_embeddings:
            raise UserError(
                f"prompt and response have {len(ids):,} tokens, and the reward model has "
                f"{self._model.config.max_position_embeddings:,} positions"
            )
        return ids, places

    def _scores(self, texts: Sequence[Encoded]) -> list[list[float]]:
        """Those of each text; of all together in one packed row."""
        if not texts:
            return []
        device = self._model.norm.weight.device
        ends = np.cumsum([0, *(len(ids) for ids, _ in texts)])
        tokens = torch.from_numpy(np.concatenate([ids for ids, _ in texts]).astype(np.int64)).to(device)
        places = [begin + np.array(own) for begin, (_, own) in zip(ends.tolist(), texts, strict=False)]
        with evaluation_mode(self._model.modules()), torch.inference_mode():
            hidden = self._model.features(tokens[None], cu_seqlens=torch.from_numpy(ends.astype(np.int32))).hidden
            scores = self._model.scores(hidden[:, torch.from_numpy(np.concatenate(places)).to(device)])[0]
        return [part.tolist() for part in scores.double().cpu().split([len(own) for own in places])]

    def _record(self, scores: Sequence[float]) -> Reward:
        (score,) = scores
        if not math.isfinite(score):
            return Reward(None, {"score": None}, f"the reward model's score is {score}, which is no finite number")
        return Reward(logistic(score), {"score": score}, f"score {score:.4g}")
