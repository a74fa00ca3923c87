"""Byte-level BPE: how text is split before merging, how bytes are spelled, and how merges are learnt.

The split follows o200k, the pattern that MiniMax's later models are known to use: a word takes at most one leading
character that is neither letter, digit nor line break; a change from lower to upper case starts a new word;
English contractions stay with their word; digits come in groups of up to three; punctuation runs take one leading
space and any trailing line breaks or slashes.
"""

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from leyden.core.log import progress

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"  # what may open a word: upper and title case, and caseless letters
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"  # what may follow: lower case, and caseless letters
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT_PATTERN = "|".join(
    (
        f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}",  # word, Word, XMLparser as one
        f"{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}",  # WORD
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",  # a run of spaces, less the last one, which belongs to the word that follows
        r"\s+",
    )
)

_TEXTS_PER_CALL = 256  # texts handed to the trainer at once; a larger number only costs memory


def untrained() -> Backend:
    """A byte-level BPE with no merges, its splitter and its decoder."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def train(texts: Iterable[str], num_tokens: int) -> Backend:
    """Learn merges from ``texts`` until there are ``num_tokens`` tokens, the 256 bytes among them.

    The result depends on the texts alone, not on the number of threads. A pair is merged only where it occurs at least
    twice, so a small text may end with fewer tokens.
    """
    backend = untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(_batches(texts), trainer)
    return backend


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts, with a bar that counts the texts and then says that merging has begun."""
    total = len(texts) if isinstance(texts, Sequence) else None
    with progress("training the tokenizer", total) as bar:
        batch: list[str] = []
        for text in texts:
            batch.append(text)
            if len(batch) == _TEXTS_PER_CALL:
                yield batch
                bar.advance(len(batch))
                batch = []
        yield batch
        bar.advance(len(batch), note="merging pairs")


def byte_spelling() -> dict[str, int]:
    """The character by which byte-level BPE spells each byte, to that byte.

    Printable Latin-1 characters stand for themselves; the other 68 bytes take the characters from U+0100 on, in order
    (the scheme of GPT-2).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    spelling = {chr(byte): byte for byte in printable}
    spelling.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return spelling
