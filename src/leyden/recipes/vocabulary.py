"""The vocabulary of a run that begins from a model: the model's tokens by their ids, and perhaps more behind them."""

from leyden.checkpoint.starting_model import GROWING, NewRows, StartingModel
from leyden.core.errors import UserError
from leyden.tokenizer import Tokenizer

_MEANING: dict[NewRows, str] = {
    "mean": "each the mean of those that the model has",
    "normal": "drawn as those of a new model",
}


def check_extends(name: str, known: Tokenizer, place: str, given: Tokenizer) -> None:
    """Refuse a tokenizer that is neither that of a model nor has all of its tokens and more behind them.

    Args:
        name: of the model.
        known: its tokenizer.
        place: where the other is.
        given: the other.

    Raises:
        UserError: the first token that differs, or that tokens are missing, or that the same ones split text otherwise.
    """
    if given.fingerprint == known.fingerprint:
        return
    opening = f"the tokenizer of {place} is another than that of model.from = '{name}'"
    for index in range(min(known.vocab_size, given.vocab_size)):
        there, here = _token(known, index), _token(given, index)
        if there != here:
            raise UserError(
                f"{opening}: token {index} is {there} there and {here} here, so that the model's rows would mean other "
                "tokens. Take the model's own tokenizer, or one that adds tokens behind its own."
            )
    if given.vocab_size < known.vocab_size:
        raise UserError(
            f"{opening}: it has {given.vocab_size} of its {known.vocab_size} tokens. Take the model's own tokenizer, "
            "or one that adds tokens behind its own."
        )
    if given.vocab_size == known.vocab_size:
        raise UserError(
            f"{opening}: it has the same tokens, and splits text into others of them. Take the model's own tokenizer."
        )


def _token(tokenizer: Tokenizer, index: int) -> str:
    """A token as an error shows it."""
    content = tokenizer.token_bytes(index)
    text = content.decode("utf-8", errors="backslashreplace")[:60]
    kind = "the special token " if tokenizer.is_special(index) else ""
    return f"{kind}{text!r}" if content or kind else "none"


def new_tokens_text(start: StartingModel, tokenizer: Tokenizer | None, rows: int) -> tuple[str, str]:
    """What a run keeps of a model's tokens, and what is new, in words; either may be empty.

    Args:
        start: the model.
        tokenizer: the run's; None: not known yet, or the model's.
        rows: the vocabulary of the run's model.
    """
    known, had = start.tokenizer, start.config.vocab_size
    kept, new = "" if known is None else f"its tokenizer of {known.vocab_size:,} tokens", []
    if known is not None and tokenizer is not None and tokenizer.vocab_size > known.vocab_size:
        kept = f"the ids of its {known.vocab_size:,} tokens"
        new.append(f"{tokenizer.vocab_size - known.vocab_size:,} tokens behind them")
    if rows > had:
        matrices = " and ".join(_TITLES[name] for name in GROWING if name in start.shapes)
        new.append(f"{rows - had:,} rows of {matrices}, {_MEANING[start.new_rows]}")
    return kept, ", ".join(new)


_TITLES = {"embed_tokens.weight": "the embedding", "lm_head.weight": "the output projection"}
