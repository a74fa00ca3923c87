"""Numbers between bounds, as regular languages of their digits.

A number with bounds is written without an exponent, and where it may have a fraction with at most 15 digits, all of
which a double holds: what is compared by its digits is then compared rightly as a double, too.
"""

from decimal import Decimal

from .patterns import pattern_term
from .regular import ANYTHING, EMPTY, NOTHING, Chars, Term, both, either, literal, repeat, sequence, without

_DIGIT = Chars(((48, 57),))
_POSITIVE = Chars(((49, 57),))
_DIGITS = 20
"""Of whole numbers without bounds: those of 64 bits have no more."""
_DOUBLE_DIGITS = 15

INTEGER = r'"-"? ("0" | [1-9] [0-9]{0,19})'
NUMBER = INTEGER + r' ("." [0-9]{1,15})? ([eE] [+-]? [0-9]{1,2})?'
"""Without bounds, for a grammar."""


def integers(minimum: int | None, maximum: int | None, divisors: Term = ANYTHING) -> Term:
    """Whole numbers, both bounds included, whose digits belong to ``divisors``."""

    def side(least: int, most: int | None) -> Term:
        if most is not None and most < least:
            return NOTHING
        # To count digits, too, would take many more states where there are divisors.
        longest = max(_DIGITS, len(str(least)) + 1) - 1 if divisors == ANYTHING else None
        if longest is not None and len(str(most)) > longest + 1:
            most = None  # it is more than can be written
        plain = either((literal("0"), sequence((_POSITIVE, repeat(_DIGIT, 0, longest)))))
        bounds = [without(_below(least))] if least else []
        bounds += [] if most is None else [_up_to(most)]
        return both(plain, *bounds, divisors)

    positive = side(max(0, minimum or 0), maximum) if maximum is None or maximum >= 0 else NOTHING
    if minimum is not None and minimum >= 0:
        return positive
    negative = side(max(1, -(maximum if maximum is not None else 0)), None if minimum is None else -minimum)
    return either((positive, sequence((literal("-"), negative))))


def numbers(
    minimum: Decimal | None, maximum: Decimal | None, *, above: bool, below: bool, only_fractions: bool = False
) -> Term:
    """Numbers between the bounds; ``above`` and ``below``: which of the bounds are excluded."""
    positive = _side(minimum, maximum, above, below, only_fractions)
    negative = _side(
        None if maximum is None else -maximum, None if minimum is None else -minimum, below, above, only_fractions
    )
    zero = pattern_term(r"0(\.0{1,15})?", whole=True)
    return either((positive, sequence((literal("-"), both(negative, without(zero))))))


def _side(least: Decimal | None, most: Decimal | None, above: bool, below: bool, only_fractions: bool) -> Term:
    """Of zero and above."""
    if most is not None and (most < 0 or (most == 0 and below)):
        return NOTHING
    widest = _DOUBLE_DIGITS if least is None or least < 0 else max(_DOUBLE_DIGITS, _whole_digits(least) + 1)
    most = None if most is None or _whole_digits(most) > widest else most  # it is more than can be written
    fraction = both(
        sequence((repeat(_DIGIT, 1, _DOUBLE_DIGITS), literal("."), repeat(_DIGIT, 1, _DOUBLE_DIGITS))),
        repeat(Chars(((46, 46), (48, 57))), 3, _DOUBLE_DIGITS + 1),
    )
    plain = both(
        either((fraction, repeat(_DIGIT, 1, widest))),
        without(sequence((literal("0"), _DIGIT, ANYTHING))),
    )
    if only_fractions:
        plain = both(plain, sequence((repeat(_DIGIT, 1, None), literal("."), ANYTHING, _POSITIVE, ANYTHING)))
    bounds = []
    if least is not None and (least > 0 or (least == 0 and above)):
        bounds.append(without(_decimals_up_to(least, included=above)))
    if most is not None:
        bounds.append(_decimals_up_to(most, included=not below))
    return both(plain, *bounds)


def _whole_digits(value: Decimal) -> int:
    return len(str(int(abs(value))))


def _below(bound: int) -> Term:
    return NOTHING if bound == 0 else _up_to(bound - 1)


def _up_to(bound: int) -> Term:
    """Digits, without a zero before them, of at most ``bound``."""
    digits = str(bound)
    shorter = repeat(_DIGIT, 1, len(digits) - 1) if len(digits) > 1 else NOTHING
    return either((shorter, literal(digits), *_smaller(digits)))


def _smaller(digits: str) -> list[Term]:
    """As many digits, of less: with the same ones up to a place where one is less."""
    return [
        sequence(
            (
                literal(digits[:place]),
                Chars(((48, ord(digit) - 1),)),
                repeat(_DIGIT, len(digits) - place - 1, len(digits) - place - 1),
            )
        )
        for place, digit in enumerate(digits)
        if digit > "0"
    ]


def _decimals_up_to(bound: Decimal, *, included: bool) -> Term:
    """Digits, with or without a fraction, of at most ``bound``, which is not negative, or of less."""
    whole, _, fraction = format(bound, "f").partition(".")
    fraction = fraction.rstrip("0")
    point, more = literal("."), repeat(_DIGIT, 0, None)
    zeros = repeat(Chars(((48, 48),)), 0, None)
    less = [
        sequence((literal(fraction[:place]), Chars(((48, ord(digit) - 1),)), more))
        for place, digit in enumerate(fraction)
        if digit > "0"
    ]
    # A fraction that breaks off before it differs is less, too.
    less += [sequence((literal(fraction[:place]), zeros)) for place in range(len(fraction))]
    same = [sequence((literal(fraction), zeros))] if included else []
    behind = either((*less, *same))
    exact = [sequence((literal(whole), either((EMPTY, sequence((point, behind))))))] if fraction or included else []
    smaller = [] if int(whole) == 0 else [sequence((_up_to(int(whole) - 1), either((EMPTY, sequence((point, more))))))]
    return either((*smaller, *exact))
