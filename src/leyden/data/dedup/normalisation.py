"""What of a text counts when two are compared: its words, without case, punctuation and kinds of white space."""

import pyarrow as pa

from leyden.data.documents import Documents, pc
from leyden.data.engine import daft

_PUNCTUATION = r"[\pP]+"  # Daft removes that of ASCII alone
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]\pM*)"
"""A character, with its marks, of a script that is written without spaces between words."""


def texts_of(documents: Documents) -> pa.Array:
    """[D] large strings: the text of each document, or the contents of its messages with empty lines between them."""
    texts = documents.table.column("text")
    if texts.null_count:
        return pa.array(documents.texts(), pa.large_string())
    return pa.concat_arrays(texts.chunks) if texts.num_chunks else pa.array([], pa.large_string())


def normalised(texts: pa.Array, *, split_unspaced: bool = False) -> pa.Array:
    """Texts in lower case and Unicode's form NFD, without punctuation, words parted by single spaces.

    Punctuation is removed, not turned into a space, so that ``don't`` is one word.

    Args:
        texts: [D] large strings.
        split_unspaced: make every character a word in scripts that are written without spaces (Chinese characters,
            kana, Thai, Lao, Khmer, Burmese, Tibetan, Yi), else a whole sentence of theirs is one word.
    """
    result = _normalise(texts, remove_punct=True, lowercase=True, nfd_unicode=True, white_space=False)
    foreign = pc.invert(pc.string_is_ascii(result))
    if pc.any(foreign).as_py():
        rest = pc.replace_substring_regex(result.filter(foreign), pattern=_PUNCTUATION, replacement="")
        if split_unspaced:
            rest = pc.replace_substring_regex(rest, pattern=_UNSPACED, replacement=r" \1 ")
        result = pc.replace_with_mask(result, foreign, rest)
    return _normalise(result, remove_punct=False, lowercase=False, nfd_unicode=False, white_space=True)


def _normalise(texts: pa.Array, **changes: bool) -> pa.Array:
    made = daft.Series.from_arrow(texts).str.normalize(**changes).to_arrow()
    return (pa.concat_arrays(made.chunks) if isinstance(made, pa.ChunkedArray) else made).cast(pa.large_string())
