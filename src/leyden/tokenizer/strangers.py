"""Checks of a ``tokenizer.json`` before it is used, since it may be untrusted.

It must be byte-level BPE, in which every byte that text has is spelt; it must give one text the same ids every time;
and it must not make much of little: replacements in a row can turn one letter into a billion.
"""

import json
from typing import Any

from tokenizers import Tokenizer as Backend

from leyden.core.errors import UserError
from leyden.core.log import log_once
from leyden.tokenizer.bpe import byte_spelling

_MAX_GROWTH = 64
_MAX_STEPS = 32
_MAX_PREPENDED = 64
_SAME_SIZE = (
    *("Strip", "StripAccents", "Nmt", "Split", "Digits", "Whitespace", "WhitespaceSplit", "Punctuation"),
    *("BertPreTokenizer", "CharDelimiterSplit", "UnicodeScripts", "FixedLength", "Delimiter"),
)
_LARGER = {"NFC": 3, "NFD": 4, "NFKC": 11, "NFKD": 11, "Lowercase": 2, "BertNormalizer": 2, "Metaspace": 3}
_GROWTH = dict.fromkeys(_SAME_SIZE, 1) | _LARGER | {"ByteLevel": 2}
"""How many bytes a step makes of one, at most, where it has no settings that say it."""


def check_backend(backend: Backend) -> None:
    """Refuse what is no byte-level BPE or multiplies text; switch off what makes ids differ from run to run.

    Raises:
        UserError: what it is, and what Leyden reads.
    """
    decoder, model = type(backend.decoder).__name__, type(backend.model).__name__
    if decoder != "ByteLevel" or model != "BPE":
        raise UserError(
            f"Leyden reads byte-level BPE tokenizers; this one is of another kind (its model is {model}, its decoder "
            f"{decoder})."
        )
    missing = _unspelt(backend)
    if missing:
        raise UserError(
            f"The tokenizer has no token for {len(missing)} of the bytes that text consists of (the first is "
            f"0x{missing[0]:02X}), so that text would be lost; take one that has all."
        )
    if backend.model.dropout is not None:
        log_once(
            __name__,
            "The tokenizer drops merges by chance (dropout); this is switched off: ids are the same every time.",
        )
        backend.model.dropout = None
    growth = 1.0
    steps = [*_steps(backend.normalizer, "normalizers"), *_steps(backend.pre_tokenizer, "pretokenizers")]
    for step in steps:
        growth *= _growth(step)
    if growth > _MAX_GROWTH or len(steps) > _MAX_STEPS:
        raise UserError(
            f"The tokenizer's {len(steps)} normalizers and pre-tokenizers can make {growth:.3g} bytes of one; Leyden "
            f"takes at most {_MAX_STEPS} of them that make at most {_MAX_GROWTH}."
        )


def _unspelt(backend: Backend) -> list[int]:
    """The bytes that UTF-8 has and the vocabulary lacks."""
    spelling = byte_spelling()
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}
    return [byte for spelt, byte in spelling.items() if byte not in never and backend.token_to_id(spelt) is None]


def _steps(component: Any, key: str) -> list[dict[str, Any]]:
    """The settings of a normalizer or pre-tokenizer, those of a sequence one by one."""
    return [] if component is None else _flat(json.loads(component.__getstate__()), key)


def _flat(step: dict[str, Any], key: str) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [inner for item in step[key] for inner in _flat(item, key)]


def _growth(step: dict[str, Any]) -> float:
    kind = step["type"]
    if kind == "Replace":
        content, pattern = len(step["content"].encode()), step["pattern"].get("String")
        # An expression may match a single character, or nothing between two of them.
        return max(1.0, content / len(pattern.encode())) if pattern else 1.0 + content
    if kind == "Prepend" and len(step["prepend"]) <= _MAX_PREPENDED:
        return 1
    if kind not in _GROWTH:
        raise UserError(f"The tokenizer has a {kind}, which can make any number of bytes of one; Leyden reads none.")
    return _GROWTH[kind]
