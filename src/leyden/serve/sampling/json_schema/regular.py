"""Regular languages, as terms with Brzozowski's derivatives (Brzozowski 1964): they can be cut and complemented.

A text is a sequence of code points without surrogates. A language is told apart into the states of an automaton, whose
transitions a grammar can spell.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Ranges = tuple[tuple[int, int], ...]
"""Code points: ranges that include both ends, in order, and do not touch."""

ALPHABET: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
MAX_STATES = 4000


class TooLargeError(ValueError):
    """A language whose automaton has more than ``MAX_STATES`` states."""


class Term:
    """A language. Equal terms are the same language; the same language may have terms that differ."""

    nullable = False
    """Whether the empty text belongs to it."""

    def derive(self, point: int) -> "Term":
        """What may follow the code point ``point``."""
        raise NotImplementedError

    def cuts(self) -> Iterator[int]:
        """Where the ranges of code points with one derivative each begin, 0 apart."""
        return iter(())


@dataclass(frozen=True)
class Chars(Term):
    """One code point of ``ranges``; no text at all where there are none."""

    ranges: Ranges

    def derive(self, point: int) -> Term:
        return EMPTY if any(low <= point <= high for low, high in self.ranges) else NOTHING

    def cuts(self) -> Iterator[int]:
        for low, high in self.ranges:
            yield low
            yield high + 1


@dataclass(frozen=True)
class Concatenation(Term):
    """One of each of ``parts``, in order; the empty text alone where there are none."""

    parts: tuple[Term, ...]

    @property
    def nullable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(part.nullable for part in self.parts)

    def _open(self) -> Iterator[int]:
        for place, part in enumerate(self.parts):
            yield place
            if not part.nullable:
                return

    def derive(self, point: int) -> Term:
        return either(sequence((self.parts[place].derive(point), *self.parts[place + 1 :])) for place in self._open())

    def cuts(self) -> Iterator[int]:
        for place in self._open():
            yield from self.parts[place].cuts()


@dataclass(frozen=True)
class _OfTerms(Term):
    """A language made of others, each of which goes on with the same text."""

    terms: frozenset[Term]

    def cuts(self) -> Iterator[int]:
        for term in self.terms:
            yield from term.cuts()


class Either(_OfTerms):
    """What is in one of ``terms``."""

    @property
    def nullable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(term.nullable for term in self.terms)

    def derive(self, point: int) -> Term:
        return either(term.derive(point) for term in self.terms)


class All(_OfTerms):
    """What is in all of ``terms``."""

    @property
    def nullable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(term.nullable for term in self.terms)

    def derive(self, point: int) -> Term:
        return both(*(term.derive(point) for term in self.terms))


@dataclass(frozen=True)
class Not(Term):
    """What is not in ``term``."""

    term: Term

    @property
    def nullable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return not self.term.nullable

    def derive(self, point: int) -> Term:
        return without(self.term.derive(point))

    def cuts(self) -> Iterator[int]:
        return self.term.cuts()


@dataclass(frozen=True)
class Repeat(Term):
    """``term`` from ``least`` times to ``most`` times; without an upper bound where that is None."""

    term: Term
    least: int
    most: int | None

    @property
    def nullable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.least == 0

    def derive(self, point: int) -> Term:
        most = None if self.most is None else self.most - 1
        return sequence((self.term.derive(point), repeat(self.term, max(0, self.least - 1), most)))

    def cuts(self) -> Iterator[int]:
        return self.term.cuts()


@dataclass(frozen=True)
class Multiple(Term):
    """Decimal digits that, behind digits that leave ``rest``, make a multiple of ``of``."""

    of: int
    rest: int = 0

    @property
    def nullable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.rest == 0

    def derive(self, point: int) -> Term:
        if not 48 <= point < 58:
            return NOTHING
        return Multiple(self.of, (10 * self.rest + point - 48) % self.of)

    def cuts(self) -> Iterator[int]:
        return iter(range(48, 59))


NOTHING = Chars(())
EMPTY = Concatenation(())
ANY = Chars(ALPHABET)
ANYTHING = Repeat(ANY, 0, None)


def sequence(parts: Iterable[Term]) -> Term:
    """One of each, in order."""
    flat: list[Term] = []
    for part in parts:
        if part == NOTHING:
            return NOTHING
        flat.extend(part.parts if isinstance(part, Concatenation) else (part,))
    return flat[0] if len(flat) == 1 else Concatenation(tuple(flat))


def either(terms: Iterable[Term]) -> Term:
    """What is in one of them."""
    flat: set[Term] = set()
    for term in terms:
        flat.update(term.terms if isinstance(term, Either) else (term,))
    flat.discard(NOTHING)
    if ANYTHING in flat:
        return ANYTHING
    return next(iter(flat), NOTHING) if len(flat) < 2 else Either(frozenset(flat))


def both(*terms: Term) -> Term:
    """What is in all of them; every text where there are none."""
    flat: set[Term] = set()
    for term in terms:
        flat.update(term.terms if isinstance(term, All) else (term,))
    flat.discard(ANYTHING)
    if NOTHING in flat:
        return NOTHING
    return next(iter(flat), ANYTHING) if len(flat) < 2 else All(frozenset(flat))


def without(term: Term) -> Term:
    """What is not in ``term``."""
    if term == NOTHING:
        return ANYTHING
    if isinstance(term, Not):
        return term.term
    return NOTHING if term == ANYTHING else Not(term)


def repeat(term: Term, least: int, most: int | None) -> Term:
    """``term`` so many times."""
    if most == 0 or term == EMPTY:
        return EMPTY
    if term == NOTHING:
        return NOTHING if least else EMPTY
    if (least, most) == (1, 1):
        return term
    return Repeat(term, 0 if term.nullable else least, most)


def literal(text: str) -> Term:
    """This text alone."""
    return sequence(Chars(((ord(sign), ord(sign)),)) for sign in text)


def fits(term: Term, text: str) -> bool:
    """Whether ``text`` belongs to the language."""
    for sign in text:
        term = term.derive(ord(sign))
    return term.nullable


def width(term: Term) -> tuple[int, int | None]:
    """Bounds of the length of its texts; the second is None where it is not known."""
    if isinstance(term, Chars):
        return 1, 1
    if isinstance(term, Repeat):
        least, most = width(term.term)
        return least * term.least, None if most is None or term.most is None else most * term.most
    if isinstance(term, Concatenation):
        widths = [width(part) for part in term.parts]
        ends = [most for _, most in widths]
        return sum(least for least, _ in widths), None if None in ends else sum(most or 0 for most in ends)
    if isinstance(term, Either):
        widths = [width(each) for each in term.terms]
        ends = [most for _, most in widths]
        return min(least for least, _ in widths), None if None in ends else max(most or 0 for most in ends)
    if isinstance(term, All):
        widths = [width(each) for each in term.terms]
        ends = [most for _, most in widths if most is not None]
        return max(least for least, _ in widths), min(ends, default=None)
    return 0, None


def union(*several: Ranges) -> Ranges:
    """The code points of any of them."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pair for ranges in several for pair in ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def common(one: Ranges, other: Ranges) -> Ranges:
    """The code points of both."""
    pairs = ((max(a, c), min(b, d)) for a, b in one for c, d in other)
    return union(tuple((low, high) for low, high in pairs if low <= high))


def complement(ranges: Ranges) -> Ranges:
    """The code points of the alphabet that are not in ``ranges``."""
    found, start = [], 0
    for low, high in ranges:
        found.append((start, low - 1))
        start = high + 1
    found.append((start, 0x10FFFF))
    return common(tuple((low, high) for low, high in found if low <= high), ALPHABET)


@dataclass(frozen=True)
class State:
    """A state of an automaton.

    Attributes:
        final: whether a text may end here.
        steps: code points, and the number of the state they lead to; those that lead nowhere are not there.
    """

    final: bool
    steps: tuple[tuple[Ranges, int], ...]


def automaton(term: Term) -> list[State]:
    """States of which the first is where a text begins, and from each of which a text can end; none where none fits.

    Raises:
        TooLargeError: there would be too many.
    """
    numbers, order, found = {term: 0}, [term], []
    for state in order:
        found.append(dict(_steps(state)))
        for following in found[-1]:
            if following not in numbers:
                numbers[following] = len(order)
                order.append(following)
                if len(order) > MAX_STATES:
                    raise TooLargeError
    alive = _alive([{numbers[to] for to in steps} for steps in found], [state.nullable for state in order])
    new = {old: place for place, old in enumerate(sorted(alive))}
    return [
        State(
            order[old].nullable,
            tuple((ranges, new[numbers[to]]) for to, ranges in found[old].items() if numbers[to] in new),
        )
        for old in sorted(alive)
        if 0 in new
    ]


def _steps(state: Term) -> Iterator[tuple[Term, Ranges]]:
    starts = sorted({0, *(cut for cut in state.cuts() if cut <= 0x10FFFF)})
    reached: dict[Term, list[tuple[int, int]]] = {}
    for low, following in zip(starts, [*starts[1:], 0x110000], strict=True):
        reached.setdefault(state.derive(low), []).append((low, following - 1))
    for term, ranges in reached.items():
        points = common(tuple(ranges), ALPHABET)
        if term != NOTHING and points:
            yield term, points


def _alive(steps: list[set[int]], final: list[bool]) -> set[int]:
    """The states from which a final one can be reached."""
    before: dict[int, set[int]] = {}
    for state, following in enumerate(steps):
        for to in following:
            before.setdefault(to, set()).add(state)
    alive = {state for state, ends in enumerate(final) if ends}
    waiting = list(alive)
    while waiting:
        fresh = before.get(waiting.pop(), set()) - alive
        alive |= fresh
        waiting.extend(fresh)
    return alive
