"""Regular expressions as JSON Schema has them (ECMA-262), read into regular languages."""

import re
import warnings
from collections.abc import Sequence
from functools import cache
from re import _constants as op  # pyright: ignore[reportAttributeAccessIssue] - the parser has no public name
from re import _parser as parser  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any

from .regular import (
    ALPHABET,
    ANYTHING,
    Chars,
    Ranges,
    Term,
    common,
    complement,
    either,
    repeat,
    sequence,
    union,
)

# fmt: off
_NOT_ECMA = re.compile(
    r"(?<!\\)(?:\\\\)*(\\[AZaUNc]|\\k<|\\[pP]\{|\\u\{|\(\?(?:[aiLmsux-]|P[=>]|\())|((?<!\\)\{,)"
)
_REFUSED = {
    op.AT: "an anchor or a word boundary that is neither at its beginning nor at its end",
    op.ASSERT: "a lookahead or lookbehind",
    op.ASSERT_NOT: "a lookahead or lookbehind",
    op.GROUPREF: "a reference to a group",
    op.GROUPREF_EXISTS: "a reference to a group",
    op.ATOMIC_GROUP: "an atomic group",
    op.POSSESSIVE_REPEAT: "a possessive quantifier",
}
_LINE_ENDS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
_DIGITS: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Ranges = ((9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
                  (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000))
_PERHAPS_WORD: Ranges = ((0x80, 0x1FFF), (0x2070, 0x209F), (0x2100, 0xD7FF), (0xE000, 0x10FFFF))
"""Blocks of code points with letters or digits among them; to tell them apart would take 700 ranges."""
_PERHAPS_SPACE: Ranges = ((0x1C, 0x1F), (0x85, 0x85), (0xFEFF, 0xFEFF))
_CLASSES = {op.CATEGORY_DIGIT: _DIGITS, op.CATEGORY_WORD: _WORD, op.CATEGORY_SPACE: _SPACE}
_NEGATED = {
    op.CATEGORY_NOT_DIGIT: op.CATEGORY_DIGIT,
    op.CATEGORY_NOT_WORD: op.CATEGORY_WORD,
    op.CATEGORY_NOT_SPACE: op.CATEGORY_SPACE,
}
# fmt: on


class PatternError(ValueError):
    """A pattern that cannot be enforced; the message goes on after "it has" or "it is"."""


def pattern_term(pattern: str, *, whole: bool = False, wide: bool = False) -> Term:
    """The texts in which ``pattern`` is found.

    Validators differ in what ``\\d``, ``\\w``, ``\\s`` and the dot take: ECMA-262 knows ASCII digits, others all of
    Unicode. What is written fits either way.

    Args:
        pattern: as ECMA-262 writes it.
        whole: of texts that match as a whole.
        wide: what fits for some validators alone, too; for texts that must not match.

    Raises:
        PatternError: it is no regular expression, or one of more than a regular language.
    """
    if found := _NOT_ECMA.search(pattern):
        raise PatternError(f"it has {(found[1] or found[2])!r}, which is not supported")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parser.parse(re.sub(r"\(\?<(?![=!])", "(?P<", pattern))
    except (re.error, OverflowError) as error:
        raise PatternError(f"it is no regular expression: {error}") from None
    reader = _Reader(wide)
    if whole:
        return reader.sequence(parsed, free=False, left=True, right=True)
    return reader.sequence(parsed, free=True, left=True, right=True)


class _Reader:
    """Reads what Python's parser makes of a pattern."""

    def __init__(self, wide: bool) -> None:
        self._wide = wide

    def sequence(self, parsed: Any, *, free: bool, left: bool = False, right: bool = False) -> Term:
        """``left`` and ``right``: the text begins and ends with it, or, if ``free``, where an anchor says so."""
        items = list(parsed)
        first = last = False
        while left and items and items[0] in ((op.AT, op.AT_BEGINNING), (op.AT, op.AT_BEGINNING_STRING)):
            del items[0]
            first = True
        while right and items and items[-1] in ((op.AT, op.AT_END), (op.AT, op.AT_END_STRING)):
            del items[-1]
            last = True
        terms = []
        for place, item in enumerate(items):
            at_left = left and not first and place == 0
            at_right = right and not last and place == len(items) - 1
            if item[0] in (op.BRANCH, op.SUBPATTERN) and (at_left or at_right):
                terms.append(self._group(item, free=free, left=at_left, right=at_right))
                continue
            terms += [ANYTHING] if free and at_left else []
            terms.append(self._item(*item))
            terms += [ANYTHING] if free and at_right else []
        if not items and free and ((left and not first) or (right and not last)):
            return ANYTHING
        return sequence(terms)

    def _group(self, item: Any, **edges: bool) -> Term:
        kind, value = item
        if kind is op.BRANCH:
            return either(self.sequence(branch, **edges) for branch in value[1])
        self._no_flags(value)
        return self.sequence(value[3], **edges)

    def _item(self, kind: Any, value: Any) -> Term:
        if kind is op.LITERAL:
            return Chars(common(((value, value),), ALPHABET))
        if kind is op.NOT_LITERAL:
            return Chars(complement(((value, value),)))
        if kind is op.ANY:
            return Chars(complement(((10, 10),) if self._wide else _LINE_ENDS))
        if kind is op.IN:
            return Chars(self._set(value))
        if kind is op.CATEGORY:
            return Chars(self._category(value, self._wide))
        if kind is op.BRANCH:
            return either(self.sequence(branch, free=False) for branch in value[1])
        if kind is op.SUBPATTERN:
            self._no_flags(value)
            return self.sequence(value[3], free=False)
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, inner = value
            return repeat(self.sequence(inner, free=False), least, None if most is op.MAXREPEAT else int(most))
        raise PatternError(f"it has {_REFUSED.get(kind, f'something that is not supported ({kind})')}")

    def _no_flags(self, value: Any) -> None:
        if value[1] or value[2]:
            raise PatternError("it has flags, which are not supported")

    def _set(self, items: Sequence[Any]) -> Ranges:
        negated = bool(items) and items[0][0] is op.NEGATE
        wide = self._wide is not negated
        found: Ranges = ()
        for kind, value in items[negated:]:
            if kind is op.LITERAL:
                found = union(found, ((value, value),))
            elif kind is op.RANGE:
                found = union(found, (value,))
            else:
                found = union(found, self._category(value, wide))
        return complement(found) if negated else common(found, ALPHABET)

    def _category(self, name: Any, wide: bool) -> Ranges:
        if name in _NEGATED:
            return complement(self._category(_NEGATED[name], not wide))
        return union(_CLASSES[name], _perhaps(name)) if wide else _CLASSES[name]


@cache
def _perhaps(name: Any) -> Ranges:
    """The code points that some readers of regular expressions take for a digit, a letter or a space."""
    if name is op.CATEGORY_DIGIT:
        points = (point for low, high in ALPHABET for point in range(low, high + 1))
        return union(tuple((point, point) for point in points if chr(point).isdigit()))
    return _PERHAPS_WORD if name is op.CATEGORY_WORD else _PERHAPS_SPACE
