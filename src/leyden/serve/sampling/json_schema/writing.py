"""Grammars whose texts are the JSON values that a schema allows: each of its keywords is kept, or refused by name.

A text of the grammar always fits the schema. Not every value that fits can be written: properties come in the order in
which they are declared, and where an object names its keys, others are written only where ``additionalProperties`` says
so; numbers and some formats have the bounds that ``numbers`` and ``formats`` tell of; in strings with a pattern, a
format, or that must not be some text, each character has one spelling.
"""

import json
import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from functools import reduce
from itertools import combinations
from typing import Any

from jsonschema_rs import CanonicalSchema, canonical

from .formats import FORMATS, format_term
from .numbers import integers, numbers
from .objects import object_alternatives
from .patterns import PatternError, pattern_term
from .reading import ANYTHING_DECLARED, SchemaError, SchemaReading, read, spelling
from .regular import (
    ANY,
    ANYTHING,
    NOTHING,
    Chars,
    Multiple,
    Repeat,
    Term,
    TooLargeError,
    both,
    repeat,
    width,
    without,
)
from .regular import literal as text_term
from .rules import Alternative, GrammarRules, Many, RuleReference, literal

_MOST_REPEATED = 100_000
_MOST_RESOLVED = 64
"""References inside each other, each of them merged with what stands beside it."""
_VALUE, _STRING, _NUMBER, _INTEGER = ("value",), ("string",), ("number",), ("integer",)
# fmt: off
_BLAMED = (
    "not", "if", "oneOf", "unevaluatedProperties", "unevaluatedItems", "dependentSchemas", "contains", "allOf", "anyOf",
    "$ref", "$dynamicRef",
)
# fmt: on
_SURROGATES = range(0xD800, 0xE000)


def schema_grammar(schema: Any) -> str:
    """The grammar of a JSON schema, in EBNF.

    Raises:
        SchemaError: it is no schema, no value fits it, or it has a keyword that cannot be kept.
    """
    reading = read(schema)
    rules = GrammarRules()
    try:
        text = rules.text(Writer(reading, rules).rule(reading.canonical))
    except (RecursionError, canonical.CanonicalizationError):
        raise SchemaError("it is too deep or too entangled to be enforced; make it simpler") from None
    if text is None:
        raise SchemaError("no JSON value that could be written fits it")
    return text


class Writer:
    """Writes the rules of one schema."""

    def __init__(self, reading: SchemaReading, rules: GrammarRules) -> None:
        self.reading, self.rules = reading, rules
        self._known: dict[CanonicalSchema, RuleReference] = {}
        self._resolved = 0

    def rule(self, schema: CanonicalSchema) -> RuleReference:
        """The rule for the values of ``schema``."""
        if schema not in self._known:
            self._known[schema] = self.rules.new()
            self.rules.add(self._known[schema], *self._alternatives(schema))
        return self._known[schema]

    def _alternatives(self, schema: CanonicalSchema) -> Iterable[Alternative]:
        match schema.view():
            case canonical.TrueView():
                return [_VALUE]
            case canonical.FalseView():
                return []
            case canonical.MultiTypeView(types):
                return [(kind,) for kind in types]
            case canonical.ConstView(value):
                return self._constants([value])
            case canonical.EnumView(values):
                return self._constants(values)
            case canonical.StringView() as view:
                return self._string(view)
            case canonical.IntegerView() as view:
                return self._integer(view.minimum, view.maximum, self._divisors(view))
            case canonical.NumberView() as view:
                return self._number(view)
            case canonical.ArrayView() as view:
                return self._array(view)
            case canonical.ObjectView() as view:
                return object_alternatives(self, view)
            case canonical.AnyOfView(branches):
                return [(self.rule(branch),) for branch in branches]
            case canonical.ReferenceView(uri):
                return [(self.rule(self.definition(schema, uri)),)]
            case canonical.AllOfView(branches):
                return [(self.rule(self.merged(branches)),)]
            case canonical.OneOfView(branches):
                for one, other in combinations(branches, 2):
                    if self.merged([one, other]).satisfiability() is not canonical.Satisfiability.NO:
                        raise self.refusal(
                            "oneOf",
                            "of schemas that may overlap cannot be enforced; take 'anyOf', or tell them apart by a "
                            "'const' that all require",
                        )
                return [(self.rule(branch),) for branch in branches]
            case canonical.RawView(raw):
                raise self.refusal(*self._first(raw))
            case _:
                raise self.refusal(*self._first(schema.to_json_schema()))

    def definition(self, schema: CanonicalSchema, uri: str) -> CanonicalSchema:
        found = schema.definition(uri)
        if found is None:
            raise self.refusal("$ref", f"leads to {uri!r}, which is not in this schema")
        return found

    def merged(self, branches: Iterable[CanonicalSchema]) -> CanonicalSchema:
        """What fits all, references resolved."""
        parts = []
        for branch in branches:
            view = branch.view()
            while isinstance(view, canonical.ReferenceView):
                self._resolved += 1
                if self._resolved > _MOST_RESOLVED:
                    raise self.refusal("$ref", "that leads back to itself cannot be merged with what stands beside it")
                branch = self.definition(branch, view.uri)
                view = branch.view()
            parts.append(branch)
        return reduce(lambda one, other: one.intersect(other), parts)

    def _first(self, table: Any) -> tuple[str, str]:
        """Which of the keywords of ``table`` to blame, and for what."""
        table = table if isinstance(table, dict) else {}
        blamed = (*_BLAMED, *table)
        found = next((key for key in blamed if key in table and key in self.reading.places), None)
        found = found or next((key for key in blamed if key in self.reading.places), "$schema")
        return found, "cannot be enforced as it is used here; leave it out, or write the schema without it"

    def refusal(self, keyword: str, why: str, value: str = "") -> SchemaError:
        """What is raised for a keyword, at the place that has it with this value, or that has it first."""
        places = self.reading.places
        place = places.get(f"{keyword}={value}") or places.get(keyword, "#")
        return SchemaError(f"at {place}: '{keyword}' {why}")

    def _constants(self, values: Iterable[Any]) -> Iterator[Alternative]:
        for value in values:
            if any(ord(sign) in _SURROGATES for sign in json.dumps(value, ensure_ascii=False, default=str)):
                raise self.refusal("const" if "const" in self.reading.places else "enum", "holds half a character")
            if not _holds(value, ANYTHING_DECLARED):
                yield (_constant(self.reading.constants.get(spelling(value), value)),)

    # Strings.

    def _string(self, view: canonical.StringView) -> Iterable[Alternative]:
        least, most = view.min_length or 0, view.max_length
        if self._unbounded(view) == ANYTHING:
            if not least and most is None:
                return [_STRING]
            self.bounded("maxLength", most)
            self.bounded("minLength", least)
            return [(rf'"\"" char{{{least},{"" if most is None else most}}} "\""',)]
        return [self.quoted(self.texts(view), "pattern" if view.patterns else "format" if view.formats else "not")]

    def texts(self, view: canonical.StringView) -> Term:
        """The strings that the view allows, without quotes and escapes."""
        return _of_length(self._unbounded(view), view.min_length or 0, view.max_length)

    def _unbounded(self, view: canonical.StringView) -> Term:
        """The same, whatever their length."""
        if view.content_media_types or view.content_encodings:
            keyword = "contentMediaType" if view.content_media_types else "contentEncoding"
            raise self.refusal(keyword, "cannot be enforced; leave it out")
        if view.excluded_formats:
            raise self.refusal("not", "of a 'format' cannot be enforced; leave it out")
        return both(
            *(self.pattern(pattern) for pattern in view.patterns),
            *(without(self.pattern(pattern, wide=True)) for pattern in view.excluded_patterns),
            *(self.format(name) for name in view.formats),
            *(without(text_term(text)) for text in view.excluded if text != ANYTHING_DECLARED),
        )

    def quoted(self, term: Term, keyword: str) -> Alternative:
        """The JSON strings of these texts; ``keyword`` is to blame where they are too many to tell apart."""
        try:
            return (r'"\""', self.rules.language(term, quoted=True, behind=r'"\""'))
        except TooLargeError:
            raise self.refusal(
                keyword, "is too complex to be enforced with what stands beside it; make it simpler"
            ) from None

    def pattern(self, pattern: str, *, wide: bool = False) -> Term:
        try:
            return pattern_term(pattern, wide=wide)
        except PatternError as error:
            keyword = "pattern" if f"pattern={pattern}" in self.reading.places else "patternProperties"
            raise self.refusal(keyword, f"{pattern[:100]!r} cannot be enforced: {error}", pattern) from None

    def format(self, name: str) -> Term:
        if name not in FORMATS:
            raise self.refusal("format", f"{name!r} cannot be enforced; leave it out")
        return format_term(name)

    def bounded(self, keyword: str, number: int | None) -> None:
        if number is not None and number > _MOST_REPEATED:
            raise self.refusal(keyword, f"can be {_MOST_REPEATED} at most; given {number}. Leave it out")

    # Numbers.

    def _divisors(self, view: canonical.IntegerView | canonical.NumberView) -> Term:
        """The digits of the whole numbers that the view's divisors allow."""
        if any(divisor != int(divisor) for divisor in (*view.multiple_of, *view.not_multiple_of)):
            raise self.refusal("multipleOf", "can be enforced for whole numbers alone")
        return both(
            *(Multiple(int(divisor)) for divisor in view.multiple_of),
            *(without(Multiple(int(divisor))) for divisor in view.not_multiple_of),
        )

    def _integer(self, minimum: int | None, maximum: int | None, divisors: Term) -> Iterable[Alternative]:
        if minimum is None and maximum is None and divisors == ANYTHING:
            return [_INTEGER]
        return [self._digits(integers(minimum, maximum, divisors), "minimum" if divisors == ANYTHING else "multipleOf")]

    def _number(self, view: canonical.NumberView) -> Iterable[Alternative]:
        least, most = (None if bound is None else Decimal(str(bound)) for bound in (view.minimum, view.maximum))
        above, below = bool(view.exclusive_minimum), bool(view.exclusive_maximum)
        fractions = view.excludes_integers or 1 in view.not_multiple_of
        if view.multiple_of:
            low = None if least is None else math.floor(least) + 1 if above else math.ceil(least)
            high = None if most is None else math.ceil(most) - 1 if below else math.floor(most)
            return self._integer(low, high, self._divisors(view))
        if not fractions and view.not_multiple_of:
            raise self.refusal("multipleOf", "cannot be enforced where it is negated; leave it out")
        if least is None and most is None and not fractions:
            return [_NUMBER]
        term = numbers(least, most, above=above, below=below, only_fractions=fractions)
        return [self._digits(term, "minimum" if least is not None else "maximum")]

    def _digits(self, term: Term, keyword: str) -> Alternative:
        try:
            return (self.rules.language(term, quoted=False),)
        except TooLargeError:
            raise self.refusal(keyword, "is too large a number to be enforced; leave it out") from None

    # Arrays.

    def _array(self, view: canonical.ArrayView) -> Iterable[Alternative]:
        least, most = view.min_items or 0, view.max_items
        if view.distinctness is not canonical.Distinctness.UNCONSTRAINED and (most is None or most > 1):
            distinct = view.distinctness is canonical.Distinctness.ALL_DISTINCT
            raise self.refusal("uniqueItems" if distinct else "not", "cannot be enforced; leave it out")
        if view.contains:
            raise self.refusal("contains", "cannot be enforced; leave it out")
        self.bounded("maxItems", most)
        self.bounded("minItems", least)
        first = view.prefix_items if most is None else view.prefix_items[:most]
        following = self._further(view, len(first), least, most)
        for place in reversed(range(len(first))):
            comma = ('","', "ws") if place else ()
            item = self.rules.add(self.rules.new("a"), (*comma, self.rule(first[place]), "ws", following))
            if place >= least:
                self.rules.add(item, ('"]"',))
            following = item
        return [('"["', "ws", following)]

    def _further(self, view: canonical.ArrayView, place: int, least: int, most: int | None) -> RuleReference:
        """The rule for what comes behind ``place`` items, up to the end."""
        item = RuleReference("value") if view.items is None else self.rule(view.items)
        end = self.rules.new("e")
        if place >= least:
            self.rules.add(end, ('"]"',))
        if most is None or most > place:
            comma = ('","', "ws") if place else ()
            self.rules.add(end, (*comma, *self.several(item, place, least, most), '"]"'))
        return end

    def several(self, item: RuleReference, count: int, least: int, most: int | None) -> Alternative:
        """One ``item`` and as many more as are wanted, ``count`` of them having come before."""
        further = self.rules.add(self.rules.new("m"), ('","', "ws", item, "ws"))
        return (item, "ws", Many(further, max(0, least - count - 1), None if most is None else most - count - 1))


def _of_length(term: Term, least: int, most: int | None) -> Term:
    """What of ``term`` has a length in these bounds."""
    if isinstance(term, Repeat) and isinstance(term.term, Chars):
        bounds = [bound for bound in (term.most, most) if bound is not None]
        if bounds and max(term.least, least) > min(bounds):
            return NOTHING
        return repeat(term.term, max(term.least, least), min(bounds, default=None))
    shortest, longest = width(term)
    if shortest >= least and (most is None or (longest is not None and longest <= most)):
        return term
    return both(term, repeat(ANY, least, most))


def _is_false(schema: CanonicalSchema) -> bool:
    return isinstance(schema.view(), canonical.FalseView)


def _holds(value: Any, text: str) -> bool:
    """Whether ``text`` is ``value``, or lies in it."""
    if isinstance(value, dict):
        return any(_holds(inner, text) for inner in value.values())
    return any(_holds(inner, text) for inner in value) if isinstance(value, list) else value == text


def _constant(value: Any) -> str:
    """A JSON value, in EBNF."""
    if isinstance(value, dict):
        pairs = [f'{_constant(key)} ws ":" ws {_constant(inner)}' for key, inner in value.items()]
        return f'"{{" ws {_listed(pairs)}"}}"'
    if isinstance(value, list):
        return f'"[" ws {_listed(map(_constant, value))}"]"'
    return literal(format(value, "f") if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False))


def _listed(pieces: Iterable[str]) -> str:
    return ' "," ws '.join(f"{piece} ws" for piece in pieces) + " "
