"""From counted words to the files of a new tokenizer: 256 bytes, merges, and MiniMax's special tokens and template."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.tokenizer.bpe import assemble, begin
from leyden.tokenizer.chat import minimax_template
from leyden.tokenizer.directory import TokenizerFiles
from leyden.tokenizer.special_tokens import BOS, MINIMAX_NAMES, SPECIAL_TOKENS, make_special
from leyden.tokenizer.training import Training, text_needed, train
from leyden.tokenizer.words import WordCounts


def learn_files(
    counts: WordCounts,
    *,
    vocab_size: int,
    targets: Mapping[str, float] | None,
    allow_smaller: bool,
    special: Sequence[str],
) -> tuple[TokenizerFiles, Training]:
    """What a directory of the new tokenizer says, and how its training went.

    Args:
        counts, vocab_size, targets, allow_smaller, special: as of
            :meth:`leyden.tokenizer.tokenizer.Tokenizer.from_words`.

    Raises:
        UserError: as there.
    """
    all_special = tuple(dict.fromkeys((*SPECIAL_TOKENS, *special)))
    smallest = 256 + len(all_special)
    if vocab_size < smallest:
        raise UserError(
            f"A vocabulary of {vocab_size} is too small: the 256 bytes and {len(all_special)} special tokens "
            f"make {smallest}. Ask for that many or more."
        )
    num_tokens = vocab_size - len(all_special)
    training = train(counts, num_tokens, targets=targets, allow_smaller=allow_smaller)
    reached = len(training.merges.tokens)
    if reached < num_tokens and not allow_smaller:
        raise UserError(
            f"The text supports a vocabulary of {reached + len(all_special)}, not of {vocab_size}: after "
            f"{reached - 256} merges no pair of tokens occurs twice. Ask for that many or fewer, or "
            f"{text_needed(counts, reached, num_tokens)}."
        )
    backend = assemble(training.merges)
    make_special(backend, all_special)
    begin(backend, BOS)
    others = tuple(token for token in all_special if token not in MINIMAX_NAMES.values())
    return TokenizerFiles(backend.to_str(), MINIMAX_NAMES, others, minimax_template()), training


def told(texts: Iterable[str]) -> Iterator[str]:
    """``texts``, with a bar that says how many have been read."""
    total = len(texts) if isinstance(texts, Sequence) else None
    with progress("counting words", total, "documents") as bar:
        for text in texts:
            yield text
            bar.advance()
