"""Escaping of untrusted text (names, ids, answers of a model) so that it is safe to print on a terminal."""

import re

# C0 and C1 controls and DEL, the marks that turn the direction of writing, line and paragraph separators, and lone
# surrogates, which stand for bytes of a file name that are no UTF-8 and cannot be encoded.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNPRINTABLE_IN_LINES = re.compile(_UNPRINTABLE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def printable(text: str, *, lines: bool = False) -> str:
    r"""``text`` with every character that could steer a terminal written as an escape (``\x1b``, ``\u202e``).

    Args:
        text: as others wrote it.
        lines: it may have several lines: line feeds and tabs stay as they are.
    """
    return (_UNPRINTABLE_IN_LINES if lines else _UNPRINTABLE).sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
