"""Grammars: what the text must be, what is refused, and that nothing a stranger sends stops the engine."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from jsonschema_rs import validate

from leyden.core.errors import UserError
from leyden.model import HybridLM
from leyden.serve import Engine
from leyden.serve.request import Request
from leyden.serve.sampling import Grammar, Grammars, Sampler, Sampling, draw, grammar
from leyden.serve.speculation import verify
from leyden.tokenizer import Tokenizer


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
        (Grammar(regex="[0-9"), "'regex': it is no regular expression: unterminated character set"),
        (Grammar(regex="a(?=b)"), "'regex': it has a lookahead or lookbehind"),
        (Grammar(ebnf="root ::= other"), "'ebnf': EBNF parser error at line 1, column 10: Rule \"other\""),
        (Grammar(ebnf='root ::= "a"{5,2}'), "Lower bound is larger than upper bound: 5 > 2"),
        (Grammar(json_schema='{"type": "what"}'), 'at #/type: this is no JSON schema: "what"'),
        (Grammar(json_schema="false"), "no JSON value"),
        (Grammar(json_schema='{"$ref": "#/$defs/none"}'), "'#/$defs/none'"),
        (Grammar(json_schema='{"type": "array", "uniqueItems": true}'), "at #: 'uniqueItems' cannot be enforced"),
        (Grammar(structure="{"), "'structure': it is no JSON"),
        (Grammar(structure='{"type": "x"}'), "Structural tag's type must be"),
    ],
    ids=range(10),
)
def test_grammars_that_cannot_be_are_refused(grammars: Grammars, asked: Grammar, message: str) -> None:
    for _ in range(2):  # the second time from memory
        with pytest.raises(UserError, match=f"grammar: .*{re.escape(message)}"):
            grammars.compile(asked)


def test_a_grammar_that_takes_too_long_is_given_up(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that compiles ends itself; the next grammar has another."""
    wide = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(1500)}}
    with monkeypatch.context() as patch:
        patch.setattr(grammar, "_SECONDS", 0.1)
        grammars.close()
        with pytest.raises(
            UserError, match=r"'json_schema' takes more than 0\.1 s or 2 GB to compile; make it simpler"
        ):
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
        assert worker is not None and worker._child is not None
        process = worker._child._process
        assert process.poll() is None
    assert process.poll() is not None
    engine.close()
    assert re.fullmatch("a*", engine.generate(["The"], asked)[0].text)


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
