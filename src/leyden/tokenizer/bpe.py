"""Byte-level BPE: how text is split before merging, how bytes are spelled, and how a vocabulary becomes a tokenizer.

The split follows o200k, the pattern that MiniMax's later models are known to use: a word takes at most one leading
character that is neither letter, digit nor line break; a change from lower to upper case starts a new word;
English contractions stay with their word; digits come in groups of up to three; punctuation runs take one leading
space and any trailing line breaks or slashes.
"""

import functools
import re

from tokenizers import Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from leyden.tokenizer.merges import Merges

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

_SPLIT = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
_IN_ASCII = {_UPPER: "[A-Z]", _LOWER: "[a-z]", r"\p{L}": "A-Za-z", r"\p{N}{1,3}": "[0-9]{1,3}", r"\p{N}": "0-9"}
_SPLIT_ASCII = re.compile(
    functools.reduce(lambda pattern, part: pattern.replace(*part), _IN_ASCII.items(), SPLIT_PATTERN), re.ASCII
)


def split_text(text: str) -> list[str]:
    """The pieces of ``text`` within which tokens are merged; joined, they are the text.

    Python's own engine splits ASCII several times faster than the library, which makes an object of each piece's place.
    """
    if text.isascii():
        return _SPLIT_ASCII.findall(text)
    return [piece for piece, _ in _SPLIT.pre_tokenize_str(text)]


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


def alphabet() -> list[bytes]:
    """[256], the single bytes in the order of their ids, which is that of their spellings."""
    spelling = byte_spelling()
    return [bytes([spelling[character]]) for character in sorted(spelling)]


def assemble(merges: Merges) -> Backend:
    """A learnt vocabulary as a tokenizer of the library, with the splitter and the decoder."""
    spelling = {byte: character for character, byte in byte_spelling().items()}
    spelt = ["".join(map(spelling.__getitem__, token)) for token in merges.tokens]
    vocabulary = {token: index for index, token in enumerate(spelt)}
    backend = Backend(models.BPE(vocabulary, [(spelt[left], spelt[right]) for left, right in merges.pairs]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [_SPLIT, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def begin(backend: Backend, token: str) -> None:
    """Let programs that ask for special tokens (stock transformers) put ``token`` before a text, as Leyden does."""
    special = [(token, backend.token_to_id(token))]
    pair = f"{token} $A {token} $B"
    backend.post_processor = processors.TemplateProcessing(single=f"{token} $A", pair=pair, special_tokens=special)
