"""Which JSON schemas a grammar can promise to fulfil.

The compiler of grammars passes over some keywords in silence; a text would then fit the grammar and not the schema.
Such schemas are refused instead. What was found by trying (xgrammar 0.2) is written down here, and tried in the tests.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from leyden.core.errors import UserError

# fmt: off
_UNKEPT = frozenset((
    "contains", "minContains", "maxContains", "not", "if", "then", "else", "unevaluatedItems", "dependentRequired",
    "dependentSchemas", "dependencies", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef",
))
_REMARKS = frozenset((
    "$schema", "$id", "$comment", "$defs", "definitions", "discriminator", "title", "description", "default",
    "examples", "example", "deprecated", "readOnly", "writeOnly",
))
# fmt: on
_ALONE = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
"""Keywords beside which all other rules of the same table are passed over."""
_NEEDS_TYPE = {
    "string": ("minLength", "maxLength", "pattern"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("minItems", "maxItems"),
    "object": ("required", "minProperties", "maxProperties"),
}
_IMPLIES_TYPE = {"array": ("items", "prefixItems"), "object": ("properties", "additionalProperties")}


def check_schema(schema: Any) -> None:
    """Refuse what a grammar cannot promise.

    Raises:
        UserError: which keyword, where, and what to do.
    """
    for place, table in _tables(schema, "#"):
        for reason in _reasons(table, schema):
            raise UserError(f"grammar: 'json_schema' at {place}: {reason}.")


def _tables(schema: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every table in ``schema`` that is a schema itself, with its place."""
    if not isinstance(schema, Mapping):
        return
    yield place, schema
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        if isinstance(schema.get(key), Mapping):
            for name, inner in schema[key].items():
                yield from _tables(inner, f"{place}/{key}/{name}")
    for key in ("items", "additionalProperties"):
        yield from _tables(schema.get(key), f"{place}/{key}")
    if isinstance(schema.get("propertyNames"), Mapping):
        yield from _tables({"type": "string", **schema["propertyNames"]}, f"{place}/propertyNames")
    for key in ("prefixItems", "anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list):
            for index, inner in enumerate(schema[key]):
                yield from _tables(inner, f"{place}/{key}/{index}")


def _reasons(table: Mapping[str, Any], root: Any) -> Iterator[str]:
    for key in sorted(_UNKEPT & table.keys()):
        yield f"'{key}' cannot be enforced; leave it out"
    if table.get("uniqueItems"):
        yield "'uniqueItems' cannot be enforced; leave it out"
    if not str(table.get("$ref", "#")).startswith("#") or str(table.get("$ref", "#/"))[1:2] not in ("", "/"):
        yield f"'$ref' can only lead to a place in the same schema ('#/...'); given {table['$ref']!r}"
    yield from _beside(table)
    if isinstance(table.get("allOf"), list) and len(table["allOf"]) > 1:
        yield "'allOf' of several schemas cannot be enforced; write them as one"
    if isinstance(table.get("oneOf"), list) and not _disjoint(table["oneOf"], root):
        yield "'oneOf' of schemas that may overlap cannot be enforced; take 'anyOf', or tell them apart by a 'const'"
    if isinstance(table.get("required"), list) and isinstance(table.get("properties", {}), Mapping):
        for name in sorted(_texts(table["required"])):
            if name not in table.get("properties", {}):
                yield f"'required' names {name!r}, which is not among 'properties'; add it there"
    if "pattern" in table and ("minLength" in table or "maxLength" in table):
        yield "'pattern' and a length cannot be enforced together; write the length into the pattern"
    if re.search(r'"|\\[^dDwWsSbB.?*+^$|()\[\]{}/-]', str(table.get("pattern", ""))):
        yield "'pattern' can hold neither quotation marks nor escapes other than of classes and signs"
    if "multipleOf" in table and table.get("type") != "integer":
        yield "'multipleOf' can be enforced for the type 'integer' alone"


def _beside(table: Mapping[str, Any]) -> Iterator[str]:
    """Keywords that are passed over for want of a type, or for another keyword's sake."""
    types = table.get("type", [])
    types = {types} if isinstance(types, str) else _texts(types)
    for kind, keys in _NEEDS_TYPE.items():
        given = [key for key in keys if key in table]
        implied = any(key in table for key in _IMPLIES_TYPE.get(kind, ()))
        if given and not implied and not types & {kind, "integer" if kind == "number" else kind}:
            yield f"'{given[0]}' needs 'type': '{kind}' beside it"
    for key in _ALONE:
        others = sorted(table.keys() - _REMARKS - {key})
        if key in ("enum", "const") and "type" in table and _all_of(types, table):
            others.remove("type")
        if key in table and others:
            yield f"'{others[0]}' beside '{key}' cannot be enforced; move it into the schemas that '{key}' names"


def _all_of(types: set[str], table: Mapping[str, Any]) -> bool:
    values = table["enum"] if isinstance(table.get("enum"), list) else [table.get("const")]
    return all(_type_of(value) & types for value in values)


def _type_of(value: Any) -> set[str]:
    """The names that JSON Schema has for the type of a value."""
    if isinstance(value, bool):
        return {"boolean"}
    names = {str: "string", float: "number", list: "array", dict: "object", type(None): "null"}
    return {"integer", "number"} if isinstance(value, int) else {names[type(value)]}


def _disjoint(branches: list[Any], root: Any) -> bool:
    """Whether no value fits two branches: by their types, or by the constants of a property that all require."""
    tables = [_resolved(branch, root) for branch in branches]
    types = [str(table.get("type")) for table in tables]
    if len(set(types)) == len(types) and not {"None", "number"} & set(types):
        return True
    names = set.intersection(*(_texts(table.get("required")) for table in tables)) if tables else set()
    for name in names:
        properties = [table.get("properties") for table in tables]
        rules = [_resolved(own.get(name) if isinstance(own, Mapping) else None, root) for own in properties]
        constants = [rule.get("enum", [rule["const"]] if "const" in rule else None) for rule in rules]
        if all(isinstance(values, list) for values in constants):
            spelled = [repr(value) for values in constants for value in values or ()]
            if len(set(spelled)) == len(spelled):
                return True
    return len(tables) == 1


def _texts(value: Any) -> set[str]:
    return {item for item in value if isinstance(item, str)} if isinstance(value, list) else set()


def _resolved(schema: Any, root: Any) -> Mapping[str, Any]:
    """The table that ``schema`` is, or leads to by one ``$ref``; an empty one where there is none."""
    if isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
        reference, schema = schema["$ref"], root
        for key in reference.split("/")[1:]:
            schema = schema.get(key) if isinstance(schema, Mapping) else None
    return schema if isinstance(schema, Mapping) else {}
