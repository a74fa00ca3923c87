"""Encoding by tiktoken, with the ids of ``tokenizers`` and several times its speed, where the two provably agree.

``tokenizers`` merges the pair whose merge is listed first; tiktoken the pair whose joined bytes have the smallest id.
They give the same ids for every text if every token

- is what its own bytes are merged to, and
- is listed in the order of ids.

For take the first step at which they differ in some word. Tiktoken then merges a pair ``l r`` that the list lacks, or
has at another place. Nothing was merged across the ends of ``lr`` before, so its inside went as it would have gone
alone: the bytes of ``lr`` alone come to the pair ``l r`` too. If the list lacks it, they stay there, against the first
point. And since they come to one pair only, whatever else the list has for the same bytes is never used.
"""

import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from leyden.core.errors import UserError
from leyden.core.panics import panics_are_user_errors
from leyden.tokenizer.bpe import byte_spelling

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ``ByteLevel`` splits by where it splits."""

_SPACES = 100_000
"""White space in a run of twice this length goes to ``tokenizers``; on 10^6, tiktoken's regex engine overflows."""


class FastEncoder:
    """Encodes with tiktoken.

    Args:
        tokens: by id, without special and added tokens.
        pattern: splits text.
    """

    def __init__(self, tokens: dict[int, bytes], pattern: str) -> None:
        import tiktoken

        ranks = {token: index for index, token in tokens.items()}
        self._encoding = tiktoken.Encoding("leyden", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._sizes = np.zeros(max(tokens) + 1, np.int32)
        for index, token in tokens.items():
            self._sizes[index] = len(token)

    def encode(self, text: str, num_bytes: int) -> np.ndarray | None:
        """The ids of ``text``, int32 [num_tokens]; None where ``tokenizers`` must be asked.

        Args:
            text: without lone surrogates.
            num_bytes: of it in UTF-8.
        """
        starts = range(0, len(text) if len(text) >= 2 * _SPACES else 0, _SPACES)
        if any(text[start : start + _SPACES].isspace() for start in starts):
            return None
        try:
            with panics_are_user_errors("the regular expression gives up"):
                ids = np.array(self._encoding.encode_ordinary(text), np.int32)
        except UserError:
            return None
        # What a pattern does not match, tiktoken leaves out, and tokenizers takes as a word.
        return ids if self._sizes[ids].sum() == num_bytes else None


def fast_encoder(backend: Backend) -> FastEncoder | str:
    """The encoder that gives the same ids as ``backend``, or why there is none, in words."""
    definition = json.loads(backend.to_str())
    pattern = _pattern(definition["pre_tokenizer"])
    if definition["normalizer"] is not None:
        return "it normalises text"
    if pattern is None:
        return "it splits text in a way of its own"
    if not all(token["special"] for token in definition["added_tokens"]):
        return "some of its added tokens are found in plain text"
    model = definition["model"]
    unusual = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk")
    if model["type"] != "BPE" or any(model.get(name) for name in unusual):
        return "its model is not plain byte-level BPE"
    bytes_of = byte_spelling()
    added = {token["content"] for token in definition["added_tokens"]}
    spelt = {token: index for token, index in model["vocab"].items() if token not in added}
    if not all(character in bytes_of for token in spelt for character in token):
        return "its tokens are not spelt in bytes"
    if not all(character in spelt for character in bytes_of):
        return "not every byte has a token"
    if reason := _disagreement(model, spelt):
        return reason
    return FastEncoder({index: bytes(map(bytes_of.__getitem__, token)) for token, index in spelt.items()}, pattern)


def _pattern(splitter: Any) -> str | None:
    """The regular expression by which a pre-tokeniser splits, if that is all it does before spelling bytes."""
    parts = splitter["pretokenizers"] if splitter and splitter["type"] == "Sequence" else [splitter]
    match parts:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return GPT2_PATTERN
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return pattern
        case _:
            return None


def _disagreement(model: dict[str, Any], spelt: dict[str, int]) -> str | None:
    """Why ids may differ, or None. ``spelt``: the tokens, to their ids."""
    places: dict[int, list[int]] = {}
    for place, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        places.setdefault(spelt.get(left + right, -1), []).append(place)
    last = -1
    for index in sorted(places.keys() - {-1}):
        if min(places[index]) < last:
            return f"its merges are not in the order of ids (token {index})"
        last = max(places[index])
    whole = bool(model.get("ignore_merges"))
    merger = Backend.from_str(json.dumps({"version": "1.0", "model": {**model, "ignore_merges": False}})).model
    for token, index in spelt.items():
        parts = [part.id for part in merger.tokenize(token)]
        if parts != [index] and not (whole and len(parts) > 2):
            return f"its merges do not lead to token {index}"
    return None
