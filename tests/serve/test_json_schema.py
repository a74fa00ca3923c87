"""JSON schemas as grammars: whatever can be written fits the schema, by two validators; the rest is refused by name."""

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jsonschema
import jsonschema_rs
import numpy as np
import pytest
import xgrammar
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.serve.sampling.json_schema import SchemaError, schema_grammar
from leyden.serve.sampling.json_schema.formats import FORMATS
from leyden.serve.sampling.json_schema.rules import pattern_grammar

END = 256
COMPILER = xgrammar.GrammarCompiler(
    xgrammar.TokenizerInfo([*(bytes([byte]) for byte in range(END)), b"<end>"], stop_token_ids=[END]), max_threads=1
)


def accepts(grammar: str, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(COMPILER.compile_grammar(grammar))
    return matcher.accept_string(text) and matcher.accept_token(END)


KEPT = [
    # schema, a value that fits it, one that does not
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"a": 1}, {}),
    ({"type": "integer", "multipleOf": 2}, 4, 3),
    ({"type": ["string", "null"], "minLength": 2}, "ab", "a"),
    ({"type": "string", "pattern": "^a+$"}, "aa", "b"),
    ({"type": "number", "exclusiveMinimum": 5}, 6, 5),
    ({"items": {"type": "integer"}, "minItems": 2}, [1, 2], [1]),
    ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False}, [1, "a"], ["a"]),
    (
        {"type": "object", "patternProperties": {"^a+$": {"type": "integer"}}, "additionalProperties": False},
        {"a": 1},
        {"b": 1},
    ),
    ({"type": "object", "maxProperties": 1, "additionalProperties": {"type": "integer"}}, {"a": 1}, {"a": 1, "b": 2}),
    ({"type": "string", "enum": ["a", "b"]}, "b", "c"),
    ({"allOf": [{"type": "integer"}]}, 3, "x"),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, 3, None),
    ({"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a"}, 1, "a"),
    ({"type": "string", "format": "date"}, "2024-01-02", "x"),
    ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"a": 1}, {}),
    ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"a": 1}, 1),
    ({"additionalProperties": {"type": "integer"}, "minProperties": 1}, {"a": 1}, {}),
    ({"prefixItems": [{"type": "integer"}], "minItems": 1}, [1], []),
    ({"type": "object", "propertyNames": {"pattern": "^a+$"}}, {"aa": 1}, {"b": 1}),
    ({"type": "integer", "minimum": -5, "maximum": 1000}, 999, 1001),
    ({"type": ["integer", "null"], "minimum": 5}, 5, 4),
    ({"type": ["array", "null"], "items": {"type": "integer"}, "maxItems": 1}, [1], [1, 2]),
    ({"type": "object", "properties": {"雷": {"const": 'a"\n'}}, "required": ["雷"]}, {"雷": 'a"\n'}, {"雷": "a"}),
    ({"enum": [1, "1", True, None, [1], {"a": 1}]}, "1", 2),
    ({"type": "array", "items": {"type": "string", "maxLength": 2}}, ["ab", "雷é"], ["abc"]),
    (
        {
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                    "required": ["next"],
                }
            },
            "$ref": "#/$defs/node",
        },
        {"next": {"next": None}},
        {"next": {"next": 1}},
    ),
    # What is written keeps to every rule, whatever stands beside it.
    ({"type": "string", "format": "email", "maxLength": 10}, "a@b.com", "averylongname@example.com"),
    ({"type": "string", "format": "ipv4", "maxLength": 9}, "1.2.3.4", "132.63.37.36"),
    ({"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083}, "https://a.bc/d?e=f#g", "no address"),
    ({"type": "string", "format": "uri", "pattern": "^https://"}, "https://a.bc", "http://a.bc"),
    ({"type": "string", "pattern": "b", "minLength": 3}, "abc", "ab"),
    ({"type": "string", "pattern": "(^a|b)c$"}, "xbc", "xac"),
    ({"type": "string", "pattern": '^"\\\\$'}, '"\\', "'"),
    ({"type": "string", "minLength": 2, "maxLength": 2}, "😀\n", "😀"),
    ({"oneOf": [{"type": ["boolean", "null"]}, {"type": "null"}]}, True, None),
    ({"oneOf": [{"type": ["integer", "null"]}, {"type": ["number", "string"]}]}, 1.5, 3),
    ({"oneOf": [{"enum": [1, 2.5]}, {"const": 1.0}]}, 2.5, 1),
    ({"type": "array", "maxItems": 2}, ["x", 1], [1, 2, 3]),
    ({"type": "array", "minItems": 1}, ["x"], []),
    ({"type": "array", "prefixItems": [{"type": "integer"}]}, [1, "x"], ["x"]),
    ({"type": "object", "required": ["z"]}, {"z": [], "a": 1}, {"a": 1}),
    ({"type": "object", "properties": {"a": {}, "b": True}}, {"a": 1, "b": {}}, {"c": 1}),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True}, {"b": 1}, {"a": "x"}),
    ({"properties": {"b": {}, "a": {}}, "required": ["a"], "minProperties": 2}, {"b": 1, "a": 2}, {"a": 2}),
    ({"type": "object", "patternProperties": {"^x-": {"type": "string"}}}, {"x-a": "b"}, {"x-a": 1}),
    (
        {"patternProperties": {"^x": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
        {"x": "a", "y": 1},
        {"x": 1},
    ),
    ({"type": "object", "propertyNames": {"enum": ["a", "b"]}}, {"a": 1}, {"c": 1}),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, {"b": 1, "a": 1}, {"a": 1}),
    ({"if": {"type": "integer"}, "then": {"minimum": 3}, "else": {"type": "string"}}, 3, 2),
    ({"type": "string", "not": {"enum": ["a"]}}, "b", "a"),
    ({"not": {"type": ["object", "array", "string"]}}, 1, "a"),
    ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]}, 9, 10),
    ({"allOf": [{"properties": {"a": {"type": "integer"}}}, {"required": ["a"], "type": "object"}]}, {"a": 1}, {}),
    ({"$ref": "#/$defs/a", "minLength": 2, "$defs": {"a": {"type": "string"}}}, "ab", "a"),
    ({"$defs": {"a": {"$anchor": "x", "type": "integer"}}, "$ref": "#x"}, 1, "a"),
    ({"$dynamicAnchor": "n", "type": "array", "items": {"$dynamicRef": "#n"}}, [[], [[]]], [1]),
    ({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}, {"a": 1}, {"b": 1}),
    ({"minimum": 5}, "any text", 4),
    ({"type": "number", "exclusiveMinimum": 0.1}, 0.10001, 0.1),
    ({"type": "number", "maximum": -2.5}, -2.51, -2.49),
    ({"type": "number", "multipleOf": 3}, 9, 10),
    ({"type": "integer", "multipleOf": 7, "minimum": 10**12}, 7 * 10**12, 7 * 10**12 + 1),
    ({"type": "integer", "multipleOf": 3, "maximum": 10**30}, 10**30 - 1, 10**30 + 2),
    ({"type": "integer", "minimum": 10**30}, 10**30, 10**30 - 1),
    ({"type": "number", "minimum": -1e300, "maximum": 1e300}, 0.5, "1"),
    ({"type": "integer", "format": "int32"}, 2**31 - 1, 2**31),
    ({"const": {"b": 1.0, "a": "\u0001"}}, {"b": 1.0, "a": "\u0001"}, {"b": 2, "a": ""}),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}]}, [1, "a"], ["a"]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), KEPT, ids=range(len(KEPT)))
def test_keywords_are_kept(schema: dict[str, Any], good: Any, bad: Any) -> None:
    grammar = schema_grammar(schema)
    for separators in ((",", ":"), (", ", ": ")):
        assert accepts(grammar, json.dumps(good, ensure_ascii=False, separators=separators))
    assert not accepts(grammar, json.dumps(bad, ensure_ascii=False))
    assert json.dumps(good, ensure_ascii=True).isascii()


UNKEPT: list[tuple[Any, str]] = [
    ({"properties": {"a": {"type": "array", "contains": {"type": "null"}}}}, "at #/properties/a: 'contains' cannot"),
    ({"type": "array", "uniqueItems": True}, "at #: 'uniqueItems' cannot"),
    ({"items": {"type": "string", "pattern": "^(?!b)[ab]$"}}, "at #/items: 'pattern' '^(?!b)[ab]$' cannot"),
    ({"patternProperties": {"a(?=b)": {}}}, "'a(?=b)' cannot be enforced: it has a lookahead"),
    ({"type": "string", "pattern": "a^b"}, "an anchor"),
    ({"type": "string", "pattern": "a\\bc"}, "a word boundary"),
    ({"type": "string", "pattern": "(a)\\1"}, "a reference to a group"),
    ({"type": "string", "pattern": "\\p{L}"}, "not supported"),
    ({"type": "string", "pattern": "["}, "at #: 'pattern' '[' is no regular expression"),
    ({"type": "string", "format": "colour"}, "at #: the 'format' 'colour' cannot be enforced; those that can be are"),
    ({"type": "object", "minProperties": 2}, "at #: 'minProperties' cannot be enforced where keys are free"),
    ({"oneOf": [{"minLength": 1}, {"properties": {"a": {"$ref": "#"}}}]}, "oneOf"),
    ({"type": "number", "multipleOf": 0.1}, "at #: 'multipleOf' can be enforced for whole numbers alone"),
    ({"type": "integer", "multipleOf": 10**9 + 7}, "'multipleOf' is too large"),
    ({"type": "string", "maxLength": 10**9}, "at #: 'maxLength' can be 100000 at most"),
    ({"$ref": "http://x/y"}, "at #: '$ref' can only lead to a place in the same schema"),
    ({"items": {"$ref": "#/$defs/a"}}, "at #/items: '$ref' leads to '#/$defs/a', which is not in this schema"),
    ({"type": "string", "nullable": True}, "at #: 'nullable' is OpenAPI's"),
    ({"type": "string", "maxLenght": 3}, "at #: 'maxLenght' is no keyword; did you mean 'maxLength'?"),
    ({"dependencies": {"a": ["b"]}}, "at #: 'dependencies' belongs to older drafts"),
    ({"properties": {"a": {"minimum": "3"}}}, 'at #/properties/a/minimum: this is no JSON schema: "3" is not of type'),
    ({"type": "array", "items": False, "minItems": 1}, "no JSON value"),
    (
        {
            "$defs": {"a": {"required": ["b"], "properties": {"b": {"$ref": "#/$defs/a"}}, "type": "object"}},
            "$ref": "#/$defs/a",
        },
        "no JSON value",
    ),
    ({"type": "object", "$ref": "#"}, "no JSON value"),
]


@pytest.mark.parametrize(("schema", "message"), UNKEPT, ids=range(len(UNKEPT)))
def test_what_would_not_be_kept_is_refused_by_name(schema: Any, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        schema_grammar(schema)
    assert message in str(caught.value)


def test_keys_come_as_they_are_declared() -> None:
    """Which is not the order of the alphabet; and a union that pydantic writes is told apart."""
    kinds = {
        name: {"type": "object", "properties": {"kind": {"const": name}, "b": {}, "a": {}}, "required": ["kind"]}
        for name in ("x", "y")
    }
    schema = {"$defs": kinds, "oneOf": [{"$ref": f"#/$defs/{name}"} for name in kinds], "discriminator": {}}
    assert accepts(schema_grammar(schema), '{"kind": "y", "b": 1, "a": 2}')
    assert not accepts(schema_grammar(schema), '{"a": 2, "b": 1, "kind": "y"}')


def test_space_is_bounded() -> None:
    grammar = schema_grammar({"type": "array", "items": {"type": "integer"}})
    assert accepts(grammar, "[ 1 ,\n2 ]") and accepts(grammar, "[1,2]")
    assert not accepts(grammar, "[1,  2]")


def test_names_and_patterns_know_their_escapes() -> None:
    """A key that is declared cannot come a second time by another spelling of it."""
    grammar = schema_grammar({"properties": {"a": {"type": "integer"}}, "additionalProperties": True, "type": "object"})
    assert accepts(grammar, '{"a": 1, "b": "\\u0061\\ud83d\\ude00"}')
    assert not accepts(grammar, '{"\\u0061": "x"}')
    assert not accepts(schema_grammar({"type": "string"}), '"\\ud83d"')
    assert not accepts(schema_grammar({"type": "string", "maxLength": 3}), '"\t"')


@pytest.mark.parametrize("pattern", ["[0-9]{3}-(a|é)+x", "^a|b$", "\\s\\S\\d\\D\\w\\W", '.\\"\\n'])
def test_patterns_of_whole_texts(pattern: str) -> None:
    compiled = COMPILER.compile_grammar(pattern_grammar(pattern))
    validator = jsonschema_rs.Draft202012Validator({"pattern": f"^(?:{pattern})$"})
    for seed in range(20):
        text, _ = walk(compiled, random.Random(seed))
        assert validator.is_valid(text)


WORDS = ("a", "b", "c", "kind", "é", "a b")
PATTERNS = (
    *("^a+$", "b", "^[a-c]*$", "^(ab|c)+$", "^.{2,3}$", "^\\d{1,4}$", "a|^b", '^"\\\\$', "[^a]$", "^\\S+$", "\\W"),
    *("^\\s?x", "é", "^[\\w.-]+@x$", "(^a|b)c", "^$", "[\\d\\D]{3}", "^[^\\w\\s]$"),
)


class Draw:
    """Random schemas: every keyword, and most of their pairs."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.references: list[str] = []

    def root(self) -> Any:
        if self.rng.random() < 0.3:
            self.references = ["#/$defs/d0", "#/$defs/d1", "#"][: self.rng.randint(1, 3)]
        schema = self.schema(0)
        if self.references and isinstance(schema, dict):
            schema["$defs"] = {"d0": self.schema(1), "d1": self.schema(1)}
        return schema

    def schema(self, depth: int) -> Any:
        rng, drawn = self.rng, self.rng.random()
        if drawn < 0.04:
            return rng.choice([True, {}, {"description": "x"}])
        if drawn < 0.1:
            values = [self.value(0) for _ in range(rng.randint(1, 4))]
            return {"const": values[0]} if drawn < 0.06 else {"enum": values}
        if self.references and drawn < 0.17:
            return {"$ref": rng.choice(self.references)}
        if depth < 3 and drawn < 0.24:
            return {key: self.schema(depth + 1) for key in ("if", "then", "else") if key == "if" or rng.random() < 0.7}
        kinds = rng.choices(
            ("string", "number", "integer", "array", "object", "null", "boolean"),
            (4, 3, 3, 3, 5, 1, 1) if depth < 3 else (4, 3, 3, 0, 0, 1, 1),
            k=rng.choice((1, 1, 1, 2)),
        )
        schema: dict[str, Any] = {"type": kinds[0] if len(set(kinds)) == 1 else sorted(set(kinds))}
        if rng.random() < 0.1 or drawn > 0.9:
            del schema["type"]
        for kind in kinds:
            schema |= {key: value for key, chance, value in self.keywords(kind, depth) if rng.random() < chance}
        if depth < 3 and rng.random() < 0.25:
            schema[rng.choice(("anyOf", "oneOf", "allOf"))] = [self.schema(depth + 1) for _ in range(rng.randint(1, 3))]
        if depth < 3 and rng.random() < 0.06:
            schema["not"] = self.schema(depth + 1)
        return schema

    def keywords(self, kind: str, depth: int) -> Iterator[tuple[str, float, Any]]:
        rng = self.rng
        if kind == "string":
            yield from (("minLength", 0.3, rng.randint(0, 4)), ("maxLength", 0.3, rng.randint(0, 8)))
            yield from (("pattern", 0.25, rng.choice(PATTERNS)), ("format", 0.15, rng.choice(list(FORMATS))))
        elif kind in ("number", "integer"):
            for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
                near, exact = rng.randint(-20, 20), round(rng.uniform(-5, 5), rng.randint(0, 3))
                yield key, 0.22, rng.choice((near, exact, 0, 10**18, 0.1, 1e-7, 1e21, 5.0))
            yield from (("multipleOf", 0.15, rng.choice((1, 2, 3, 7, 0.5, 2.0))), ("format", 0.03, "int32"))
        elif kind == "array":
            yield from (("minItems", 0.3, rng.randint(0, 3)), ("maxItems", 0.3, rng.randint(0, 4)))
            yield "items", 0.6, self.schema(depth + 1)
            yield "prefixItems", 0.25, [self.schema(depth + 1) for _ in range(rng.randint(1, 3))]
            yield from (("uniqueItems", 0.03, True), ("unevaluatedItems", 0.04, self.schema(depth + 1)))
            yield from (("contains", 0.04, self.schema(depth + 1)), ("minContains", 0.03, rng.randint(0, 2)))
        elif kind == "object":
            names = rng.sample(WORDS, rng.randint(0, 4))
            yield "properties", 0.9, {name: self.schema(depth + 1) for name in names}
            yield "required", 0.5, rng.sample([*names, "z"], rng.randint(0, 1 + len(names) // 2))
            yield "additionalProperties", 0.5, rng.choice((False, True, self.schema(depth + 1)))
            yield "patternProperties", 0.15, {rng.choice(("^a", "b$", "^x-")): self.schema(depth + 1) for _ in "12"}
            yield "propertyNames", 0.1, rng.choice(({"pattern": "^[a-z]+$"}, {"maxLength": 3}, {"enum": ["a", "z"]}))
            yield from (("minProperties", 0.15, rng.randint(0, 3)), ("maxProperties", 0.15, rng.randint(0, 4)))
            yield from (("dependentRequired", 0.06, {"a": ["b"]}), ("dependentSchemas", 0.05, {"a": self.schema(3)}))
            yield "unevaluatedProperties", 0.07, rng.choice((False, True, self.schema(depth + 1)))

    def value(self, depth: int) -> Any:
        rng = self.rng
        kind = rng.randint(0, 5 if depth < 2 else 3)
        if kind == 4:
            return [self.value(depth + 1) for _ in range(rng.randint(0, 3))]
        if kind == 5:
            return {name: self.value(depth + 1) for name in rng.sample(WORDS, rng.randint(0, 3))}
        texts = ("", "a", "ab", "é\u0001", '"\\', "😀", "kind")
        exact = round(rng.uniform(-5, 5), 2)
        return rng.choice((rng.randint(-5, 30), exact, rng.choice(texts), True, False, None, 2.0))


def walk(compiled: xgrammar.CompiledGrammar, rng: random.Random, most: int = 400) -> tuple[str, bool]:
    """A text of the grammar, by random tokens that may come next, and whether it came to its end."""
    matcher = xgrammar.GrammarMatcher(compiled)
    bits, text = xgrammar.allocate_token_bitmask(1, END + 1), bytearray()
    while len(text) < most:
        matcher.fill_next_token_bitmask(bits, 0)
        allowed = np.flatnonzero(np.unpackbits(bits.numpy().view(np.uint8).reshape(-1), bitorder="little")[: END + 1])
        assert len(allowed), f"nothing may come behind {bytes(text)!r}"
        closing = [token for token in allowed if token in (34, 93, 125, END)]
        plain = [token for token in allowed if 32 < token < 127]
        late = len(text) > 60
        choices = closing if closing and rng.random() < (0.8 if late else 0.4) else plain
        token = int(rng.choice(choices if choices and rng.random() < 0.8 else allowed))
        assert matcher.accept_token(token)
        if token == END:
            return text.decode(), True
        text.append(token)
    return "", False


def check_random_schemas(seeds: range) -> int:
    """How many schemas of these seeds can be enforced; what is written by their grammars is valid."""
    kept = 0
    for seed in seeds:
        schema = Draw(seed).root()
        try:
            compiled = COMPILER.compile_grammar(schema_grammar(schema))
        except SchemaError as error:
            assert "'" in str(error) or "no JSON value" in str(error)
            continue
        kept += 1
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        one = jsonschema.Draft202012Validator(schema, format_checker=checker)
        other = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
        for number in range(4):
            text, ended = walk(compiled, random.Random(100 * seed + number))
            if not ended:
                continue
            try:
                valid = one.is_valid(json.loads(text))
            except BaseException as error:  # the validator's, in a schema that leads back to itself
                assert "RecursionError" in repr(error)
                continue
            assert valid and other.is_valid(json.loads(text)), (seed, json.dumps(schema), text)
    return kept


def test_what_is_written_is_valid() -> None:
    assert check_random_schemas(range(30)) > 12


@pytest.mark.slow
def test_what_is_written_is_valid_by_the_thousand() -> None:
    assert check_random_schemas(range(1000, 5000)) > 2000


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=2),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "properties", "items", "oneOf", "required", "enum", "const", "$ref", "not"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
@settings(max_examples=30, deadline=None)
def test_any_json_is_a_schema_or_an_error_for_the_user(schema: Any) -> None:
    if isinstance(schema, dict | bool):
        with suppress(SchemaError):
            schema_grammar(schema)
