"""A model on this machine as what the stages of a data build ask: the default judge."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leyden.checkpoint import load
from leyden.core.errors import UserError
from leyden.data.label.language_model import Answer, Request
from leyden.serve import Engine, Sampling


class LocalModel:
    """Answers requests one after another (:class:`leyden.data.label.language_model.LanguageModel`).

    Args:
        directory: of a model with a tokenizer that has a chat template.

    Raises:
        UserError: there is no model, or no tokenizer.
    """

    def __init__(self, directory: str) -> None:
        model, tokenizer = load(directory)
        if tokenizer is None:
            raise UserError(f"{directory} has no tokenizer, so that it cannot be asked anything.")
        self._engine, self._tokenizer = Engine(model, tokenizer), tokenizer
        self._identity = _digest(Path(directory))

    @property
    def identity(self) -> str:
        """A digest of the weights and the tokenizer."""
        return self._identity

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Each request's index and answer, in order; one longer than the model's positions is refused."""
        for index, request in enumerate(requests):
            messages: list[Any] = [{"role": turn.role, "content": turn.content} for turn in request.messages]
            tokens = self._tokenizer.encode_chat(messages)
            sampling = Sampling(max_tokens=request.max_tokens, temperature=request.temperature, seed=request.seed)
            limit = self._engine.model.config.max_position_embeddings
            if len(tokens) >= limit:
                yield index, Answer(f"{len(tokens)} tokens, and the model has {limit} positions", "refused")
                continue
            done = self._engine.generate([tokens], sampling)[0]
            yield index, Answer(done.text, done.finish_reason)


def _digest(directory: Path) -> str:
    """Of the files that decide what a model says."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*")):
        if path.suffix in (".safetensors", ".json", ".jinja"):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:32]
