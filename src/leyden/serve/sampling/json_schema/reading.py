"""A JSON schema read into canonical form, with what that form does not tell: the order of properties, and places.

jsonschema_rs merges ``allOf``, tells apart ``oneOf``, resolves ``not``, conditions and references. What it does not
know of is refused here, by name and place.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from .formats import FORMATS, INTEGERS, SAYS_NOTHING

ANYTHING_DECLARED = "\ue000leyden: any value\ue000"
"""A text that no answer is. The canonical form drops properties whose value may be anything; such a schema is written
as "not this text", which is as good as anything, and stays."""

# fmt: off
_TABLES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")
_SCHEMAS = (
    "items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems", "propertyNames", "contains", "not",
    "if", "then", "else", "contentSchema", "additionalItems",
)
_PLAIN = (
    "type", "enum", "const", "format", "pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "uniqueItems", "minContains", "maxContains", "required",
    "minProperties", "maxProperties", "dependentRequired", "contentEncoding", "contentMediaType", "$ref",
    "$dynamicRef", "$recursiveRef", "dependencies",
)
_REMARKS = frozenset((
    "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment", "discriminator",
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly",
))
# fmt: on
_POSITIVE = frozenset(("properties", "patternProperties", "additionalProperties", "items", *_LISTS)) - {"oneOf"}
_IMPLYING = {
    "object": frozenset(("properties", "additionalProperties")),
    "array": frozenset(("items", "prefixItems")),
}
_SAYING = frozenset(("type", "enum", "const", "$ref", "$dynamicRef", "anyOf", "oneOf", "not", "if"))
_SHOWN = 100
"""Characters of a pattern in a message."""
_KEYWORDS = frozenset((*_TABLES, *_LISTS, *_SCHEMAS, *_PLAIN))
_SHARED = ("$ref=#/$defs/", "$ref=#/definitions/")
_NEGATING = ("not", "if", "oneOf", "dependentSchemas", "contains", "unevaluatedProperties", "unevaluatedItems")
_OLD = {
    "nullable": "is OpenAPI's, not JSON Schema's; write \"null\" among the types",
    "dependencies": "belongs to older drafts; write 'dependentRequired' or 'dependentSchemas'",
    "additionalItems": "belongs to older drafts; write 'prefixItems' and 'items'",
    "$recursiveRef": "belongs to an older draft; write '$dynamicRef'",
}


class SchemaError(ValueError):
    """A schema that is none, or that cannot be enforced; the message says where and why."""


@dataclass(frozen=True)
class SchemaReading:
    """A schema in canonical form.

    Attributes:
        canonical: the form.
        orders: of each table of properties, the places of their names.
        places: of each keyword, and of each keyword with its text ("pattern=^a"), the first place that has it.
        constants: the values of ``const`` and ``enum`` as they were written, by :func:`spelling`.
    """

    canonical: jsonschema_rs.CanonicalSchema
    orders: tuple[Mapping[str, int], ...]
    places: Mapping[str, str]
    constants: Mapping[str, Any]


def read(schema: Any) -> SchemaReading:
    """Check ``schema`` and bring it into canonical form.

    Raises:
        SchemaError: it is no schema, or has a keyword that cannot be enforced.
    """
    orders: list[Mapping[str, int]] = []
    places: dict[str, str] = {}
    constants: dict[str, Any] = {}
    _check_draft(schema)
    for place, table in tables(schema, "#"):
        for keyword, value in table.items():
            places.setdefault(keyword, place)
            for told in value if keyword == "patternProperties" and isinstance(value, Mapping) else (value,):
                if isinstance(told, str):
                    places.setdefault(f"{keyword}={told}", place)
        _check(place, table)
        listed = table["enum"] if isinstance(table.get("enum"), list) else []
        for value in (*listed, *([table["const"]] if "const" in table else [])):
            constants.setdefault(spelling(value), value)
        if isinstance(table.get("properties"), Mapping):
            orders.append({name: index for index, name in enumerate(table["properties"])})
    for place, table in tables(schema, "#"):
        negating = next((keyword for keyword in _NEGATING if keyword in places), None)
        if negating is not None and str(table.get("format")) in INTEGERS:
            # Validators do not know it: what they take for less, "not" makes more.
            raise SchemaError(
                f"at {place}: the 'format' of a number cannot be enforced beside '{negating}'; write bounds"
            )
    try:
        # Of what references into the schema's own parts lead to, nobody knows whether it is negated.
        inward = any(key.startswith("$ref=#") and not key.startswith(_SHARED) for key in places)
        declared = _declared(schema, implied=not inward and "$dynamicRef" not in places)
        canonical = jsonschema_rs.canonicalize(declared, validate_formats=True, offline=True)
    except jsonschema_rs.ValidationError as error:
        where = "/".join(("#", *map(str, error.instance_path)))
        raise SchemaError(f"at {where}: this is no JSON schema: {error.message}") from None
    except jsonschema_rs.canonical.CanonicalizationError as error:
        raise SchemaError(_told(str(error), places)) from None
    return SchemaReading(canonical, tuple(orders), places, constants)


def spelling(value: Any) -> str:
    """One text for all JSON values that are equal: in JSON Schema 1 is 1.0, and the order of keys says nothing."""
    return json.dumps(_whole(value), sort_keys=True, default=str)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def tables(schema: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every table in ``schema`` that is a schema itself, with its place."""
    if not isinstance(schema, Mapping):
        return
    yield place, schema
    for key, name, inner in _inner(schema):
        yield from tables(inner, f"{place}/{key}" if name is None else f"{place}/{key}/{name}")


def _inner(schema: Mapping[str, Any]) -> Iterator[tuple[str, str | int | None, Any]]:
    for key in schema:
        value = schema[key]
        if key in _TABLES and isinstance(value, Mapping):
            yield from ((key, name, inner) for name, inner in value.items())
        elif (key in _LISTS or key == "items") and isinstance(value, list):
            yield from ((key, index, inner) for index, inner in enumerate(value))
        elif key in _SCHEMAS:
            yield key, None, value


def _check_draft(schema: Any) -> None:
    """Refuse what the declared draft does not know; without ``$schema``, that is 2020-12."""
    draft = str(schema.get("$schema", "2020-12")) if isinstance(schema, Mapping) else "2020-12"
    old = not any(year in draft for year in ("2020-12", "2019-09"))
    for place, table in tables(schema, "#"):
        for keyword, remedy in _OLD.items():
            if keyword in table and not (old and keyword != "nullable") and table[keyword] is not False:
                raise SchemaError(f"at {place}: '{keyword}' {remedy}")


def _check(place: str, table: Mapping[str, Any]) -> None:
    for keyword in table.keys() - _KEYWORDS - _REMARKS:
        near = difflib.get_close_matches(keyword, _KEYWORDS, 1, 0.85)
        if near:
            raise SchemaError(f"at {place}: '{keyword}' is no keyword; did you mean '{near[0]}'?")
    name = table.get("format")
    if isinstance(name, str) and name not in FORMATS and name not in SAYS_NOTHING and name not in INTEGERS:
        known = ", ".join(sorted(FORMATS))
        raise SchemaError(f"at {place}: the 'format' {name!r} cannot be enforced; those that can be are {known}")


def _declared(schema: Any, *, implied: bool) -> Any:
    """``schema`` with what is meant and not said.

    A declared value that may be anything is written as such, and the bounds of a format of numbers as bounds. Where it
    is ``implied``, a schema that names properties or items and no type is of an object or an array: it would allow any
    other value, too. This does not hold for what may be negated, nor for what references lead to.
    """
    if not isinstance(schema, Mapping):
        return schema
    new = dict(schema)
    for key, value in schema.items():
        inside = implied and key in _POSITIVE
        if key in _TABLES and isinstance(value, Mapping):
            new[key] = {name: _declared(inner, implied=inside) for name, inner in value.items()}
        elif key in (*_LISTS, *_SCHEMAS):
            inner = value if isinstance(value, list) else [value]
            new[key] = [_declared(each, implied=inside) for each in inner]
            new[key] = new[key] if isinstance(value, list) else new[key][0]
    for key in ("properties", "patternProperties"):
        if isinstance(new.get(key), Mapping):
            new[key] = {name: _kept(inner) for name, inner in new[key].items()}
    for key in ("additionalProperties", "unevaluatedProperties"):
        if key in new:
            new[key] = _kept(new[key])
    kinds = [kind for kind, keywords in _IMPLYING.items() if schema.keys() & keywords]
    if implied and len(kinds) == 1 and not schema.keys() & _SAYING:
        new["type"] = kinds[0]
    name = schema.get("format")
    if isinstance(name, str) and name not in FORMATS:
        del new["format"]
        if name in INTEGERS and isinstance(schema.get("allOf", []), list):
            least, most = INTEGERS[name]
            new["allOf"] = [*new.get("allOf", []), {"minimum": least, "maximum": most}]
    return new


def _kept(schema: Any) -> Any:
    anything = schema is True or (isinstance(schema, Mapping) and not schema.keys() & _KEYWORDS)
    return {"not": {"const": ANYTHING_DECLARED}} if anything else schema


def _told(message: str, places: Mapping[str, str]) -> str:
    """What jsonschema_rs says, in plain words where they are known."""
    quoted = message.split("'")[1] if message.count("'") > 1 else message.partition('"')[2].rpartition('"')[0]
    if "not present in a registry" in message:
        place = places.get(f"$ref={quoted}") or places.get("$ref", "#")
        return f"at {place}: '$ref' can only lead to a place in the same schema ('#/...'); given {quoted!r}"
    if "does not exist" in message:
        quoted = f"#{quoted}"
        place = places.get(f"$ref={quoted}") or places.get("$ref", "#")
        return f"at {place}: '$ref' leads to {quoted!r}, which is not in this schema"
    if "regular expression" in message:
        keyword = "pattern" if f"pattern={quoted}" in places else "patternProperties"
        place = places.get(f"{keyword}={quoted}", "#")
        return f"at {place}: '{keyword}' {quoted[:_SHOWN]!r} is no regular expression, or too large a one"
    return message
