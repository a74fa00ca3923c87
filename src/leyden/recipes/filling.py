"""What a stage says of fill-in-the-middle, and what its data are with that."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.data.loader.fill_in_middle import FilledShards, FillInMiddle, Sentinels
from leyden.data.shards import TokenShards
from leyden.tokenizer import Tokenizer

if TYPE_CHECKING:
    from leyden.recipes.schema import TrainingStage


class FillingSettings(Config):
    """The key of a stage that is about fill-in-the-middle."""

    fim: FillInMiddle | None = None
    """Some documents are rearranged, so that the model learns to fill gaps. None: none are."""


def special_tokens(stages: Iterable["TrainingStage"]) -> tuple[str, ...]:
    """Those that stages rearrange documents with, each once."""
    return tuple(dict.fromkeys(token for stage in stages if stage.fim is not None for token in stage.fim.tokens))


def rearranged(
    shards: Mapping[str, TokenShards], fim: FillInMiddle | None, tokenizer: Tokenizer, seed: int
) -> Mapping[str, TokenShards]:
    """Tokens by group with some documents rearranged; as they are where ``fim`` is None.

    Raises:
        UserError: the tokenizer has not the special tokens.
    """
    if fim is None:
        return shards
    sentinels = _sentinels(fim, tokenizer)
    return {name: FilledShards.of(group, fim, sentinels, seed) for name, group in shards.items()}


def _sentinels(fim: FillInMiddle, tokenizer: Tokenizer) -> Sentinels:
    found = [tokenizer.encode(token, allow_special=True) for token in fim.tokens]
    missing = [
        token for token, ids in zip(fim.tokens, found, strict=True) if len(ids) != 1 or not tokenizer.is_special(ids[0])
    ]
    if missing:
        raise UserError(
            f"fim writes the special tokens {', '.join(fim.tokens)}, and the tokenizer does not have "
            f"{', '.join(missing)}. Say in fim what it calls them (prefix, suffix, middle); or take a tokenizer that "
            "has them: one that a run trains gets them by itself, in a data build [tokens] special_tokens names them, "
            "and leyden tokenizer train has --special."
        )
    prefix, suffix, middle = (ids[0] for ids in found)
    return Sentinels(prefix, suffix, middle, tokenizer.bos_id, tokenizer.eod_id, _continuing(tokenizer))


def _continuing(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that begin within a character: with one of the bytes that go on in UTF-8."""
    return tuple(
        t
        for t in range(tokenizer.vocab_size)
        if tokenizer.token_bytes(t)[:1] and tokenizer.token_bytes(t)[0] & 0xC0 == 0x80
    )
