"""Opening what a user names (a model, or an endpoint and a tokenizer) as a source of answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from leyden.checkpoint import load
from leyden.checkpoint.hub import find_model
from leyden.core.errors import UserError
from leyden.evaluate.haystack import Haystack
from leyden.evaluate.sources import EndpointSettings, EndpointSource, EngineSource, Source
from leyden.evaluate.task import Subject
from leyden.tokenizer import Tokenizer


def open_model(name: str, device: torch.device, text: Sequence[Path]) -> tuple[Source, Subject]:
    """A model of this machine.

    Args:
        name: a directory in any layout, a run, a checkpoint, or a hub id.
        device: where it computes.
        text: of the haystack.

    Raises:
        UserError: there is no such model, or it has no tokenizer.
    """
    model, tokenizer = load(name, dtype="auto", device=device)
    if tokenizer is None:
        raise UserError(f"{name} has no tokenizer, and tasks are text; put its tokenizer.json beside the weights.")
    config = model.config
    haystack = Haystack(tokenizer, text)
    chats = tokenizer.chat_template is not None
    subject = Subject(name, tokenizer, config.max_position_embeddings, config.vocab_size, haystack, chats)
    return EngineSource(model, tokenizer), subject


@contextmanager
def open_endpoint(
    settings: EndpointSettings, tokenizer_of: str | None, text: Sequence[Path]
) -> Iterator[tuple[Source, Subject]]:
    """A model behind an endpoint.

    Args:
        settings: where it is, and how it is asked.
        tokenizer_of: a model, or a directory with a tokenizer alone, which counts lengths and makes prompts.
        text: of the haystack.

    Raises:
        UserError: no tokenizer was named or found, or the endpoint cannot be asked.
    """
    if tokenizer_of is None:
        raise UserError(
            "with --endpoint, name a tokenizer with --tokenizer MODEL: it counts lengths and makes the prompts. The "
            "endpoint's own is needed for likelihoods; for the other tasks any that is near to it will do."
        )
    has_one = (Path(tokenizer_of) / "tokenizer.json").is_file()
    tokenizer = Tokenizer.load(tokenizer_of if has_one else find_model(tokenizer_of))
    source = EndpointSource(settings, tokenizer)
    try:
        haystack = Haystack(tokenizer, text)
        name = f"{source.model} at {settings.url}"
        yield source, Subject(name, tokenizer, None, tokenizer.vocab_size, haystack, chats=True)
    finally:
        source.close()
