"""A model on this machine as what the stages of a data build ask: the default judge."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from leyden.checkpoint import load
from leyden.checkpoint.hub import find_model
from leyden.core.errors import UserError
from leyden.data.label.language_model import ModelRequest, Reply
from leyden.serve import Engine, Sampling

_AT_ONCE = 64
"""Requests that are answered together, before the first of their answers is given out."""


class LocalModel:
    """Answers requests (:class:`leyden.data.label.language_model.LanguageModel`).

    Args:
        directory: of a model with a tokenizer that has a chat template.
        device: where it computes; by default the CPU.

    Attributes:
        engine, model, tokenizer: they.

    Raises:
        UserError: there is no model, or no tokenizer.
    """

    def __init__(self, directory: str, device: torch.device | None = None) -> None:
        model, tokenizer = load(directory, dtype=None if device is None else "auto", device=device)
        if tokenizer is None:
            raise UserError(f"{directory} has no tokenizer, so that it cannot be asked anything.")
        self.engine, self.model, self.tokenizer = Engine(model, tokenizer), model, tokenizer
        self._identity = _digest(find_model(directory))

    @property
    def identity(self) -> str:
        """A digest of the weights and the tokenizer."""
        return self._identity

    def complete(self, requests: Sequence[ModelRequest]) -> Iterator[tuple[int, Reply]]:
        """Each request's index and answer, in order; one longer than the model's positions is refused."""
        for start in range(0, len(requests), _AT_ONCE):
            answers = self._answer(requests[start : start + _AT_ONCE])
            yield from enumerate(answers, start)

    def _answer(self, requests: Sequence[ModelRequest]) -> list[Reply]:
        limit = self.engine.model.config.max_position_embeddings
        prompts = [self.tokenizer.encode_chat(_messages(request)) for request in requests]
        answers = [Reply(f"{len(tokens)} tokens, and the model has {limit} positions", "refused") for tokens in prompts]
        fitting = [index for index, tokens in enumerate(prompts) if len(tokens) < limit]
        samplings = [
            Sampling(max_tokens=request.max_tokens, temperature=request.temperature, seed=request.seed)
            for request in (requests[index] for index in fitting)
        ]
        done = self.engine.generate([prompts[index] for index in fitting], samplings)
        for index, completion in zip(fitting, done, strict=True):
            if completion.finish_reason not in ("stop", "length"):
                raise UserError(f"the model did not finish an answer: {completion.error}.")
            answers[index] = Reply(completion.text, completion.finish_reason)
        return answers


def _messages(request: ModelRequest) -> list[Any]:
    return [{"role": turn.role, "content": turn.content} for turn in request.messages]


def _digest(directory: Path) -> str:
    """Of the files that decide what a model says."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*")):
        if path.suffix in (".safetensors", ".json", ".jinja"):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:32]
