"""Objects of a JSON schema: which keys they may have, in which order, how many, and with which values."""

import json
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from jsonschema_rs import CanonicalSchema, canonical

from .reading import ANYTHING_DECLARED
from .regular import ANYTHING, NOTHING, Term, both, either, fits, without
from .regular import literal as text_term
from .rules import SPACE, Alternative, RuleReference, literal

if TYPE_CHECKING:
    from .writing import Writer

_MOST_COUNTED = 20_000
"""Rules to count the properties of one object."""
_MOST_PATTERNS = 4


def object_alternatives(writer: "Writer", view: canonical.ObjectView) -> Iterable[Alternative]:
    """The objects of a schema."""
    if view.violations:
        raise writer.refusal("not", "of this kind of object cannot be enforced; leave it out")
    keys = _Keys(writer, view)
    if not keys.required <= set(keys.named):
        return []
    return [('"{"', "ws", _pairs(writer, keys, view.min_properties or 0, view.max_properties))]


class _Keys:
    """Which keys an object may have.

    Attributes:
        named: those that are named one by one and are allowed, in the order in which they are declared.
        required: those that must be there.
    """

    def __init__(self, writer: "Writer", view: canonical.ObjectView) -> None:
        self._writer, self._view = writer, view
        self._allowed, listed = ANYTHING, None
        if view.property_names is not None:
            self._allowed, listed = _names(writer, view.property_names)
        declared = [name for name, schema in view.properties.items() if not _is_false(schema)]
        # An object that names its keys has no others, unless it says so.
        unsaid = view.additional_properties is None
        self._shut = listed is not None or (bool(declared) if unsaid else _is_false(view.additional_properties))
        self._patterns = [] if listed is not None else list(view.pattern_properties)
        self._only_patterns = self._shut or (unsaid and bool(self._patterns))
        self.required = set(view.required)
        named = dict.fromkeys([*declared, *view.required, *(listed or ())])
        self.named = _in_order(writer, [name for name in named if fits(self._allowed, name)])

    def value(self, name: str) -> RuleReference:
        """The rule for the value of the key ``name``."""
        view = self._view
        found = [view.properties[name]] if name in view.properties else []
        found += [
            inner for pattern, inner in view.pattern_properties.items() if fits(self._writer.pattern(pattern), name)
        ]
        if not found and view.additional_properties is not None:
            found = [view.additional_properties]
        return self._writer.rule(self._writer.merged(found)) if found else RuleReference("value")

    def free(self) -> RuleReference | None:
        """The rule for a pair whose key is not named; None where there are none."""
        rules, rule = self._writer.rules, None
        for term, schema in self._further():
            if term == NOTHING:
                continue
            rule = rule or rules.new("f")
            key = ("string",) if term == ANYTHING else self._writer.quoted(term, "patternProperties")
            value = RuleReference("value") if schema is None else self._writer.rule(schema)
            rules.add(rule, (*key, SPACE, '":"', SPACE, value))
        return rule

    def _further(self) -> Iterator[tuple[Term, CanonicalSchema | None]]:
        """Keys that are not named, told apart by the patterns they match, and the schemas of their values."""
        view, writer = self._view, self._writer
        if len(self._patterns) > _MOST_PATTERNS:
            raise writer.refusal("patternProperties", f"can be {_MOST_PATTERNS} at most in one object")
        others = without(either(text_term(name) for name in {*view.properties, *self.named}))
        for number in range(1 if self._only_patterns else 0, len(self._patterns) + 1):
            for chosen in combinations(self._patterns, number):
                term = both(
                    self._allowed,
                    others,
                    *(writer.pattern(pattern) for pattern in chosen),
                    *(
                        without(writer.pattern(pattern, wide=True))
                        for pattern in self._patterns
                        if pattern not in chosen
                    ),
                )
                schemas = [view.pattern_properties[pattern] for pattern in chosen]
                yield term, writer.merged(schemas) if schemas else view.additional_properties


def _pairs(writer: "Writer", keys: _Keys, least: int, most: int | None) -> RuleReference:
    """The rule for the pairs of an object, up to its end; it counts them where that matters."""
    free, rules = keys.free(), writer.rules
    if free is None and most is not None and most >= len(keys.named):
        most = None
    if least <= len(keys.required):
        least = 0
    elif free is not None and least > len(keys.required) + 1:
        raise writer.refusal(
            "minProperties", "cannot be enforced where keys are free, since a key may be written twice; name them"
        )
    writer.bounded("maxProperties", most)
    counted = max(least, 0 if most is None else len(keys.named))
    if len(keys.named) * counted > _MOST_COUNTED:
        keyword = "minProperties" if most is None else "maxProperties"
        raise writer.refusal(keyword, "has too many properties to count")
    counts = range(counted + 1)
    # One more pair, of the keys from a place on, where so many came before.
    another = {count: rules.new("k") for count in counts}
    for count in counts:
        if free is not None and (most is None or count < most):
            rules.add(another[count], (*writer.several(free, count, least, most), '"}"'))
    needed = False  # whether a required key is still to come
    for name in reversed(keys.named):
        key = literal(json.dumps(name, ensure_ascii=False))
        pair = rules.add(rules.new("p"), (key, SPACE, '":"', SPACE, keys.value(name), "ws"))
        ends = {count: rules.new("e") for count in counts}
        for count, end in ends.items():
            rules.add(end, ('","', "ws", another[count]), *([('"}"',)] if count >= least and not needed else []))
        before = {count: rules.new("k") for count in counts}
        for count, rule in before.items():
            if most is None or count < most:
                rules.add(rule, (pair, ends[min(count + 1, counted)]))
            if name not in keys.required:
                rules.add(rule, (another[count],))
        another, needed = before, needed or name in keys.required
    return rules.add(rules.new("b"), (another[0],), *([('"}"',)] if least == 0 and not needed else []))


def _in_order(writer: "Writer", names: list[str]) -> list[str]:
    """As they are declared together, as far as they are."""
    first: dict[str, int] = {}
    for order in writer.reading.orders:
        for name in order:
            first.setdefault(name, len(first))
    nearest = max(writer.reading.orders, key=lambda order: sum(name in order for name in names), default={})
    return sorted(names, key=lambda name: (nearest.get(name, len(nearest)), first.get(name, len(first)), name))


def _names(writer: "Writer", schema: CanonicalSchema) -> tuple[Term, list[str] | None]:
    """The keys that a schema of names allows, and their list where it is one."""
    match schema.view():
        case canonical.TrueView() | canonical.MultiTypeView():
            return ANYTHING, None
        case canonical.FalseView():
            return NOTHING, []
        case canonical.ConstView() | canonical.EnumView() as view:
            values = [view.value] if isinstance(view, canonical.ConstView) else view.values
            listed = [value for value in values if isinstance(value, str) and value != ANYTHING_DECLARED]
            return either(map(text_term, listed)), listed
        case canonical.AnyOfView(branches):
            parts = [_names(writer, branch) for branch in branches]
            lists = [names for _, names in parts]
            joined = None if None in lists else [name for names in lists for name in names or ()]
            return either(term for term, _ in parts), joined
        case canonical.StringView() as view:
            return writer.texts(view), None
        case canonical.ReferenceView(uri):
            return _names(writer, writer.definition(schema, uri))
        case _:
            raise writer.refusal("propertyNames", "cannot be enforced as it is used here; leave it out")


def _is_false(schema: CanonicalSchema | None) -> bool:
    return schema is not None and isinstance(schema.view(), canonical.FalseView)
