"""Grammars: what the text must be, what is refused, and that nothing a stranger sends stops the engine."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.model import HybridLM
from leyden.serve import Engine
from leyden.serve.request import Request
from leyden.serve.sampling import CompiledGrammar, Grammar, Grammars, Sampler, Sampling, draw, grammar
from leyden.serve.sampling.schema import check_schema
from leyden.serve.speculation import verify
from leyden.tokenizer import Tokenizer

pytest.importorskip("xgrammar")
validate = pytest.importorskip("jsonschema_rs").validate


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Iterator[Grammars]:
    """Of a model with a few more logits than there are tokens."""
    made = Grammars(tokenizer, tokenizer.vocab_size + 40)
    yield made
    made.close()


@pytest.fixture(scope="module")
def ends(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset({tokenizer.eos_id, tokenizer.eod_id})


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b\n", 3, None]}, "maxItems": 3},
        "home": {"anyOf": [{"$ref": "#/$defs/place"}, {"type": "null"}]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"street": {"const": "雷"}}, "required": ["street"]}},
}


def write(sampler: Sampler, vocab: int, seed: int, most: int = 400) -> list[int]:
    """What a model of random logits says, up to the end."""
    generator, tokens = torch.Generator().manual_seed(seed), []
    while len(tokens) < most:
        tokens.append(sampler(3 * torch.randn(vocab, generator=generator)).token)
        if sampler.ends(tokens[-1]):
            return tokens[:-1]
    pytest.fail(f"no end within {most} tokens")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_whatever_is_written_fits_the_schema(
    grammars: Grammars, tokenizer: Tokenizer, ends: frozenset[int], temperature: float
) -> None:
    asked = Grammar(json_schema=PERSON)  # pyright: ignore[reportArgumentType]
    compiled = grammars.compile(asked)
    assert grammars.compile(Grammar(json_schema=json.dumps(PERSON))) is compiled
    texts = set()
    for seed in range(6):
        # Random logits seldom end a text of their own accord; a bias makes the ends likely where they are allowed.
        sampling = Sampling(
            grammar=asked, seed=seed, temperature=temperature, logit_bias=dict.fromkeys(ends, 20.0), max_tokens=400
        )
        sampler = Sampler(sampling, end_tokens=ends, grammar=compiled)
        text = tokenizer.decode(write(sampler, tokenizer.vocab_size + 40, seed))
        validate(PERSON, json.loads(text))
        texts.add(text)
    assert len(texts) > 3


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        (Grammar(regex="[0-9]{3}-(a|é)+x"), lambda text: re.fullmatch("[0-9]{3}-(a|é)+x", text)),
        (Grammar(choice=("yes", 'no "q" \\', "ja\n雷☂")), lambda text: text in ("yes", 'no "q" \\', "ja\n雷☂")),
        (Grammar(json_object=True), lambda text: isinstance(json.loads(text), dict)),
        (Grammar(ebnf='root ::= "(" root ")" | "x"'), lambda text: re.fullmatch(r"\(*x\)*", text)),
    ],
    ids=["regex", "choice", "json_object", "ebnf"],
)
def test_other_grammars(
    grammars: Grammars, tokenizer: Tokenizer, ends: frozenset[int], asked: Grammar, fits: Callable[[str], object]
) -> None:
    compiled = grammars.compile(asked)
    closing = [tokenizer.encode(sign)[0] for sign in '"}]']
    sampling = Sampling(grammar=asked, seed=1, logit_bias=dict.fromkeys(ends, 20.0) | dict.fromkeys(closing, 9.0))
    for index in range(3):  # n completions, each with a place of its own in the grammar
        sampler = Sampler(sampling, index=index, end_tokens=ends, grammar=compiled)
        assert fits(tokenizer.decode(write(sampler, tokenizer.vocab_size + 40, index)))


def test_special_tokens_are_no_text(grammars: Grammars, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
    """A grammar that allows the spelling of a special token still does not allow the token."""
    asked = Grammar(regex="(<end_of_sentence>|<image>){1,9}z")
    sampling = Sampling(grammar=asked, seed=0, logit_bias=dict.fromkeys(tokenizer.special_tokens.values(), 50.0))
    sampler = Sampler(sampling, end_tokens=ends, grammar=grammars.compile(asked))
    tokens = write(sampler, tokenizer.vocab_size + 40, 0)
    assert not any(map(tokenizer.is_special, tokens))
    assert re.fullmatch(asked.regex or "", tokenizer.decode(tokens))


def test_a_batch_and_guesses_change_nothing(grammars: Grammars, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
    """Beside a completion without grammar; wrong guesses leave the grammar where it was."""
    vocab, asked = tokenizer.vocab_size + 40, Grammar(regex="(ab|cd){1,9}")
    compiled = grammars.compile(asked)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(12, vocab, generator=generator)

    def sampler() -> Sampler:
        return Sampler(Sampling(grammar=asked, seed=4), end_tokens=ends, grammar=compiled)

    alone, together, other = sampler(), sampler(), Sampler(Sampling(seed=5))
    expected = []
    for row in logits:
        expected.append(alone(row).token)
        if alone.ends(expected[-1]):
            break
    found: list[int] = []
    while len(found) < len(expected):
        place = len(found)
        guess = [*expected[place : place + 2], 5][: len(expected) - place - 1]
        rows = torch.cat([logits[place : place + 1 + len(guess)], logits[:1]])
        found += [one.token for one in verify([together, other], [guess, []], rows)[0]]
    assert found == expected
    assert draw([other], logits[:1])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Grammar(regex="[0-9"), "Unclosed"),
        (Grammar(ebnf="root ::= other"), "other"),
        (Grammar(json_schema='{"type": "what"}'), "what"),
        (Grammar(json_schema="false"), "cannot accept any value"),
        (Grammar(json_schema='{"$ref": "#/$defs/none"}'), "none"),
        (Grammar(json_schema='{"type": "array", "uniqueItems": true}'), "'uniqueItems' cannot be enforced"),
    ],
    ids=["regex", "ebnf", "type", "false", "ref", "unkept"],
)
def test_grammars_that_cannot_be_are_refused(grammars: Grammars, asked: Grammar, message: str) -> None:
    for _ in range(2):  # the second time from memory
        with pytest.raises(UserError, match=f"grammar: .*{re.escape(message)}"):
            grammars.compile(asked)


def test_a_grammar_that_takes_too_long_is_given_up(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that compiles ends itself; the next grammar has another."""
    wide = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(1500)}}
    with monkeypatch.context() as patch:
        patch.setattr(grammar, "_SECONDS", 0)
        with pytest.raises(UserError, match="takes more than 0 s"):
            grammars.compile(Grammar(json_schema=wide))  # pyright: ignore[reportArgumentType]
    assert grammars.compile(Grammar(regex="[a-c]{7}")).matcher()


def test_a_grammar_that_takes_too_long_to_follow_ends_its_text_alone(
    grammars: Grammars, tokenizer: Tokenizer, ends: frozenset[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The company of such a completion gets the tokens that it has alone."""
    asked = Grammar(ebnf='root ::= s\ns ::= s s s | s s | "a" | ""')
    compiled, logits = grammars.compile(asked), torch.zeros(2, tokenizer.vocab_size + 40)
    monkeypatch.setattr(grammar, "_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(grammar, "_SECONDS_PER_TOKEN", 0.0)
    sampling = Sampling(grammar=asked, seed=0, logit_bias=dict.fromkeys(ends, -50.0))
    slow, other, alone = (
        Sampler(sampling, end_tokens=ends, grammar=compiled),
        Sampler(Sampling(seed=1)),
        Sampler(Sampling(seed=1)),
    )
    for _ in range(400):
        drawn = draw([slow, other], logits)
        assert drawn[1] == alone(logits[1])
        if slow.ends(drawn[0].token):
            break
    assert slow.ends(drawn[0].token)
    assert slow.failure is not None and "takes too long to follow" in slow.failure
    assert other.failure is None


@pytest.fixture(scope="module")
def make_engine(
    make_model: Callable[..., HybridLM], tokenizer: Tokenizer, grammars: Grammars
) -> Callable[[str], Engine]:
    model = make_model(vocab_size=tokenizer.vocab_size + 40)

    def make(speculation: str) -> Engine:
        engine = Engine(
            model, tokenizer, max_sequences=4, speculation=speculation, kv_gigabytes=0.01, cache_gigabytes=0
        )
        engine._grammars = grammars  # one process that compiles for all
        return engine

    return make


def test_an_engine_writes_what_was_asked_for(make_engine: Callable[[str], Engine]) -> None:
    """Several completions in company, finished or cut; with guesses and without, the same."""
    asked = Grammar(regex="(ab|ba){3,9}[.]")
    sampling = Sampling(grammar=asked, seed=2, n=3, max_tokens=24, temperature=0.7)
    plain, guessed = (make_engine(source).generate(["The tower"], sampling) for source in ("none", "prompt"))
    assert [one.tokens for one in plain] == [one.tokens for one in guessed]
    assert len({one.tokens for one in plain}) > 1
    for completion in plain:
        assert re.fullmatch("(ab|ba){0,9}[ab]?[.]?", completion.text)
        assert completion.finish_reason == "length" or re.fullmatch(asked.regex or "", completion.text)


def test_an_engine_ends_a_text_whose_grammar_takes_too_long(
    make_engine: Callable[[str], Engine], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(grammar, "_SECONDS_PER_TOKEN", 0.0)
    engine, tokens = make_engine("none"), tokenizer.encode("The tower")
    engine.add(Request(tokens, Sampling(grammar=Grammar(regex="a+"), max_tokens=9), "slow"))
    engine.add(Request(tokens, Sampling(max_tokens=3, ignore_eos=True), "other"))
    last = {}
    while engine.busy:
        last |= {delta.request: delta for delta in engine.step()}
    assert last["slow"].finish_reason == "error"
    assert last["slow"].error == "its grammar takes too long to follow; make it less ambiguous."
    assert last["other"].finish_reason == "length"


def test_the_end_of_an_engine_ends_the_process_that_compiles(model: HybridLM, tokenizer: Tokenizer) -> None:
    """And one that is used all the same starts another."""
    asked = Sampling(grammar=Grammar(regex="a+"), max_tokens=4)
    with Engine(model, tokenizer, kv_gigabytes=0.01, cache_gigabytes=0, max_sequences=1) as engine:
        engine.close()  # there is none yet
        engine.prepare(asked)
        assert engine._grammars is not None
        worker = engine._grammars._worker
        assert worker is not None and worker._process.poll() is None
    assert worker._process.poll() is not None
    engine.close()
    assert re.fullmatch("a*", engine.generate(["The"], asked)[0].text)


def test_without_the_package_the_extra_is_named(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("pip install 'leyden[grammar]'")):
        Grammars(tokenizer, 10).compile(Grammar(regex="a"))


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
    ({"type": "object", "minProperties": 2, "additionalProperties": {"type": "integer"}}, {"a": 1, "b": 2}, {"a": 1}),
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
]


@pytest.mark.parametrize(("schema", "good", "bad"), KEPT, ids=range(len(KEPT)))
def test_keywords_that_are_allowed_are_kept(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any], good: Any, bad: Any
) -> None:
    compiled = grammars.compile(Grammar(json_schema=schema))  # pyright: ignore[reportArgumentType]
    assert fits(compiled, tokenizer, json.dumps(good, ensure_ascii=False))
    assert not fits(compiled, tokenizer, json.dumps(bad, ensure_ascii=False))


def fits(compiled: CompiledGrammar, tokenizer: Tokenizer, text: str) -> bool:
    bits = torch.zeros(1, (tokenizer.vocab_size + 40 + 31) // 32, dtype=torch.int32)
    matcher = compiled.matcher()
    for token in [*tokenizer.encode_bytes(text.encode()), tokenizer.eos_id]:
        matcher.allow(bits, 0)
        if not (bits[0, token // 32].item() >> (token % 32)) & 1:
            return False
        matcher.accept(token)
    return True


UNKEPT: list[tuple[Any, str]] = [
    ({"not": {}}, "'not' cannot"),
    ({"properties": {"a": {"type": "array", "contains": {}}}}, "#/properties/a: 'contains' cannot"),
    ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
    ({"allOf": [{"type": "integer"}, {"minimum": 1, "type": "integer"}]}, "'allOf' of several"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "'oneOf' of schemas that may overlap"),
    ({"type": "string", "pattern": "a", "minLength": 3}, "'pattern' and a length"),
    ({"minimum": 5}, "'minimum' needs 'type': 'number'"),
    ({"type": "string", "minimum": 5}, "'minimum' needs 'type': 'number'"),
    ({"minItems": 5}, "'minItems' needs 'type': 'array'"),
    ({"required": ["a"]}, "'required' needs 'type': 'object'"),
    ({"type": "object", "required": ["b"], "properties": {"a": {}}}, "'required' names 'b'"),
    ({"$ref": "#/$defs/a", "minimum": 3, "type": "integer", "$defs": {"a": {}}}, "'minimum' beside '$ref'"),
    ({"$ref": "http://x/y"}, "'$ref' can only lead"),
    ({"$ref": "#a"}, "'$ref' can only lead"),
    ({"type": "integer", "anyOf": [{"minimum": 5, "type": "integer"}]}, "'type' beside 'anyOf'"),
    ({"type": "string", "enum": ["a", 1]}, "'type' beside 'enum'"),
    ({"type": "string", "pattern": 'a"b'}, "'pattern' can hold neither"),
    ({"type": "string", "pattern": r"a\n\d"}, "'pattern' can hold neither"),
    ({"type": "number", "multipleOf": 0.1}, "'multipleOf' can be enforced"),
]


@pytest.mark.parametrize(("schema", "message"), UNKEPT, ids=range(len(UNKEPT)))
def test_keywords_that_would_not_be_kept_are_refused(schema: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_schema(schema)


def test_a_choice_told_apart_by_a_constant_is_allowed() -> None:
    """As pydantic writes a tagged union."""
    kinds = {
        name: {"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]} for name in ("a", "b")
    }
    schema = {"$defs": kinds, "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "discriminator": {}}
    check_schema(schema)
    kinds["b"]["required"] = []  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="overlap"):
        check_schema(schema)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=2),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "properties", "items", "oneOf", "required", "enum", "const", "$ref", "allOf"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
@settings(max_examples=60)
def test_any_json_is_a_schema_or_an_error_for_the_user(schema: Any) -> None:
    try:
        Grammar(json_schema=json.dumps(schema))
        check_schema(schema)
    except UserError:
        pass


deep = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give exactly one of 'json_schema', .* given none"),
        ({"regex": "a", "ebnf": "b"}, "given 'regex' and 'ebnf'"),
        ({"json_object": False}, "'json_object' can only be true"),
        ({"json_schema": "{"}, "'json_schema': give a schema as JSON"),
        ({"json_schema": "[]"}, "'json_schema': a schema is a table"),
        ({"json_schema": deep}, "deeper inside each other than 32 levels"),
        ({"json_schema": {"items": json.loads("[" * 40 + "]" * 40)}}, "deeper inside each other than 32 levels"),
        ({"json_schema": " " * 70_000}, "'json_schema' has 70000 characters; at most 65536 are allowed"),
        ({"json_schema": json.loads("[" * 900 + "]" * 900)}, "'json_schema': a schema is a table"),
        ({"regex": "a" * 70_000}, "'regex' has 70000 characters; at most 65536 are allowed"),
        ({"choice": []}, "'choice'"),
        ({"choice": ["a"] * 1025}, "'choice'"),
        ({"choice": "ab"}, "'choice'"),
        ({"regex": 5}, "'regex'"),
        ({"what": 5}, "unknown key 'what'"),
    ],
    ids=range(15),
)
def test_bad_grammars_name_their_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^sampling: grammar: (?s:.*){message}"):
        Sampling(grammar=fields)  # pyright: ignore[reportArgumentType]
