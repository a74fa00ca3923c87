"""Calls in an answer: found however it is cut into pieces, and what is none stays text."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from leyden.core.errors import UserError
from leyden.serve.http.response_format import ResponseFormat, answer_grammar
from leyden.serve.http.tool_parser import CallDelta, ToolParser
from leyden.serve.http.tools import ToolChoice, Tools, ToolUse, gather
from leyden.serve.sampling import Grammar, Grammars
from leyden.tokenizer import Tokenizer

FORMAT: TypeAdapter[Any] = TypeAdapter(ResponseFormat)
NAMES = ("get", "get_weather", "now")
BLOCK = '<function_call>```typescript\nfunctions.get_weather({"city": "Leyden"})\n```'
LISTED = '<tool_calls>\n{"name": "get", "arguments": {"a": 1}}\n{"name": "now", "arguments": {}}\n</tool_calls>'
TAGGED = '<tool_call>\n{"name": "now", "arguments": {"zone": 1}}\n</tool_call>'


def parts(pieces: Iterable[str], names: Iterable[str] = NAMES, **options: Any) -> list[str | CallDelta]:
    numbers = iter(range(1000))
    parser = ToolParser(tuple(names), new_id=lambda: f"call_{next(numbers)}", **options)
    return [*(part for piece in pieces for part in parser.push(piece)), *parser.finish()]


def read(pieces: Iterable[str], **options: Any) -> tuple[str | None, list[tuple[str, str]]]:
    content, calls = gather(parts(pieces, **options))
    assert [call.id for call in calls] == [f"call_{place}" for place in range(len(calls))]
    assert all(call.model_dump(exclude_unset=True)["type"] == "function" for call in calls)
    return content, [(call.function.name, call.function.arguments) for call in calls]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("", "", []),
        (" \n", " \n", []),
        ("No call.", "No call.", []),
        (BLOCK, None, [("get_weather", '{"city": "Leyden"}')]),
        ("\n" + BLOCK + "\n", None, [("get_weather", '{"city": "Leyden"}')]),
        ("I see.\n" + BLOCK, "I see.\n", [("get_weather", '{"city": "Leyden"}')]),
        (BLOCK + "\nDone.", "\nDone.", [("get_weather", '{"city": "Leyden"}')]),
        # Without the special token, which is no text.
        (BLOCK.removeprefix("<function_call>"), None, [("get_weather", '{"city": "Leyden"}')]),
        # Two in one block, two blocks, no arguments.
        (
            "```typescript\nfunctions.get({})\nfunctions.now();\n```" + BLOCK,
            None,
            [("get", "{}"), ("now", "{}"), ("get_weather", '{"city": "Leyden"}')],
        ),
        (TAGGED + "\n" + TAGGED, None, [("now", '{"zone": 1}')] * 2),
        ('<tool_call>{"name":"get","parameters":{}}</tool_call>', None, [("get", "{}")]),
        (LISTED, None, [("get", '{"a": 1}'), ("now", "{}")]),
        ("I see.\n" + LISTED + "\nDone.", "I see.\n\nDone.", [("get", '{"a": 1}'), ("now", "{}")]),
        ('<tool_calls>\n{"name": "get", "arguments": {"a": 1', None, [("get", '{"a": 1')]),
        # The arguments before the name.
        ('<tool_call>{"arguments": {"a": "}"}, "name": "get"}</tool_call>', None, [("get", '{"a": "}"}')]),
        (
            '<tool_calls>\n{"arguments": {}, "name": "now"}\n{"parameters":{"b":[1]},"name":"get"}\n</tool_calls>',
            None,
            [("now", "{}"), ("get", '{"b":[1]}')],
        ),
        ('<tool_call>{"arguments": {"a": 1}, "name": "rm"}', '<tool_call>{"arguments": {"a": 1}, "name": "rm"}', []),
        ('<tool_call>{"arguments": {"a": [1', '<tool_call>{"arguments": {"a": [1', []),
        # Brackets and quotes inside strings.
        (
            '```typescript\nfunctions.get({"a": "}\\")`\\\\", "b": [{}]})\n```',
            None,
            [("get", '{"a": "}\\")`\\\\", "b": [{}]}')],
        ),
        # Cut off, or closed by nothing.
        ('```typescript\nfunctions.get({"a": [1, "\\', None, [("get", '{"a": [1, "\\')]),
        ("```typescript\nfunctions.get({})", None, [("get", "{}")]),
        ("```typescript\nfunctions.get({}) and so on", " and so on", [("get", "{}")]),
        ('<tool_call>{"name": "now", "arguments": {}, "x": 1}</tool_call>', ', "x": 1}</tool_call>', [("now", "{}")]),
        # Not JSON: what the model wrote is what it called with.
        ("```typescript\nfunctions.get({a: 'b'})\n```", None, [("get", "{a: 'b'}")]),
        # No calls: an unknown function, half a marker, other code, arguments that are none.
        (BLOCK.replace("get_weather", "rm"), BLOCK.replace("get_weather", "rm"), []),
        ("<function_call>```typescript\nfunctions.get(", "<function_call>```typescript\nfunctions.get(", []),
        ("```typescript\nlet x = 1\n```", "```typescript\nlet x = 1\n```", []),
        ("```typescript\nfunctions.get(3)\n```", "```typescript\nfunctions.get(3)\n```", []),
        ('<tool_call>{"name": "now"}</tool_call>', '<tool_call>{"name": "now"}</tool_call>', []),
        ("<tool_call>{broken", "<tool_call>{broken", []),
    ],
)
def test_text_and_calls(text: str, content: str | None, calls: list[tuple[str, str]]) -> None:
    assert read([text]) == (content, calls)
    assert read(text) == (content, calls)


# fmt: off
FRAGMENTS = [
    "<function_call>", "```typescript\n", "functions.", "get", "get_weather", "now", "rm", "(", ")", "{", "}", "[", "]",
    "<tool_call>", "</tool_call>", '"name": ', '"arguments": ', '"', "\\", ", ", ";", " ", "\n", "```", "x", BLOCK,
    TAGGED, LISTED, "<tool_calls>\n{", '{"arguments": {"a": "', '<tool_call>{"name": "get", "arguments": {',
    "```typescript\nfunctions.now({",
]
# fmt: on


@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12), st.data(), st.booleans())
@example(["```typescript\nfunctions.now({", "\\"], None, True)
def test_streamed_is_whole(fragments: list[str], data: st.DataObject | None, parallel: bool) -> None:
    text = "".join(fragments)
    whole = read([text], parallel=parallel)
    assert read(text, parallel=parallel) == whole
    assert read(fragments, parallel=parallel) == whole
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
        assert (
            read([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)], parallel=parallel) == whole
        )
    if not whole[1]:
        assert whole[0] == text


def test_text_and_arguments_are_not_held_back() -> None:
    parser = ToolParser(NAMES)
    assert parser.push("I see. <") == ["I see. "]
    assert parser.push("b> ") == ["<b> "]
    assert parser.push("<tool_call>" + " " * 9) == ["<tool_call>" + " " * 9]
    assert parser.push("```typescript\nfunctions.get_weather(") == []
    head, arguments = parser.push('{"city')
    assert isinstance(head, CallDelta) and (head.index, head.name, head.arguments) == (0, "get_weather", "")
    assert head.id is not None and head.id.startswith("call_")
    assert arguments == CallDelta(0, '{"city')
    assert parser.push('": "Ley') == [CallDelta(0, '": "Ley')]
    assert parser.push('den"})\n```') == [CallDelta(0, 'den"}')]
    assert (parser.num_calls, parser.done) == (1, False)


def test_one_call_at_most() -> None:
    parser = ToolParser(NAMES, parallel=False)
    assert len(parser.push(BLOCK + "\nAnd " + BLOCK)) == 2
    assert (parser.num_calls, parser.done) == (1, True)
    assert parser.push("more") == parser.finish() == []


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = TypeAdapter(Tools).validate_python(
    [
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "Sky", "parameters": CITY, "strict": True},
        },
        {"type": "function", "function": {"name": "now"}},
    ]
)


def choice(value: Any) -> ToolChoice:
    return TypeAdapter(ToolChoice).validate_python(value, strict=True)


def named(name: str) -> ToolChoice:
    return choice({"type": "function", "function": {"name": name}})


def test_what_a_choice_means() -> None:
    assert ToolUse.of(None, None, None) == ToolUse.of([], choice("auto"), True) == ToolUse()
    assert ToolUse.of(TOOLS, choice("none"), None) == ToolUse()
    free = ToolUse.of(TOOLS, None, None)
    assert free == ToolUse.of(TOOLS, choice("auto"), True)
    assert free.names == ("get_weather", "now") and free.forced is None and free.parallel
    assert free.tools is not None
    assert free.tools[1] == {"type": "function", "function": {"name": "now"}}
    assert ToolUse.of(TOOLS, choice("required"), False).names == ("get_weather", "now")
    assert not ToolUse.of(TOOLS, choice("required"), False).parallel
    only = ToolUse.of(TOOLS, named("now"), None)
    assert only.names == ("now",) and only.tools is not None and len(only.tools) == 2


@pytest.mark.parametrize(
    ("tools", "value", "message"),
    [
        ([], "required", '"tools" is empty'),
        (TOOLS, {"type": "function", "function": {"name": "nov"}}, "'nov', not of \"tools\"; did you mean 'now'"),
        ([TOOLS[0], TOOLS[0]], "auto", "names are unique"),
    ],
)
def test_a_choice_that_cannot_be(tools: Any, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ToolUse.of(tools, choice(value), None)


def test_schemas_are_bounded() -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"items": deep}
    tools = TypeAdapter(Tools).validate_python([{"type": "function", "function": {"name": "f", "parameters": deep}}])
    with pytest.raises(UserError, match="function 'f' are out of bounds"):
        ToolUse.of(tools, None, None)


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "retrieval"},
        {"type": "function", "function": {"name": "a b"}},
        {"type": "function", "function": {"name": "f", "strict": 1}},
        {"type": "function", "function": {"name": "f", "parameters": []}},
        {"type": "function", "function": {"name": "f"}, "x": 1},
    ],
)
def test_a_tool_of_another_shape_is_refused(tool: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Tools).validate_python([tool])


@pytest.fixture
def with_template(tokenizer: Tokenizer, tmp_path: Path) -> Callable[[str], Tokenizer]:
    """The tokenizer with another chat template."""

    def make(template: str) -> Tokenizer:
        if not template:
            return tokenizer
        tokenizer.save(tmp_path)
        (tmp_path / "chat_template.jinja").write_text(template)
        return Tokenizer.load(tmp_path)

    return make


@pytest.fixture(scope="module")
def accepts(tokenizer: Tokenizer) -> Iterator[Callable[..., bool]]:
    """Whether a text, special tokens by their spelling, fits a grammar."""
    grammars = Grammars(tokenizer, tokenizer.vocab_size)

    def fits(grammar: Grammar | None, text: str, *, special: bool = True) -> bool:
        assert grammar is not None
        matcher = grammars.compile(grammar).matcher()._matcher
        tokens = [*tokenizer.encode(text, allow_special=special), tokenizer.eos_id]
        return all(matcher.accept_token(token) for token in tokens)

    yield fits
    grammars.close()


WRITTEN = {
    # By what of it is in the template: how calls begin, are set apart and end; and one call.
    "": ("<function_call>```typescript\n", "\n", "\n```", "functions.%s(%s)"),
    "<tool_call>": ("<tool_call>\n", "\n<tool_call>\n", "", '{"name": "%s", "arguments": %s}\n</tool_call>'),
    "<tool_calls>": ("<tool_calls>\n", "\n", "\n</tool_calls>", '{"name": "%s", "arguments": %s}'),
}


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("template", WRITTEN)
def test_a_forced_call_is_one_that_the_parser_reads(
    with_template: Callable[[str], Tokenizer], accepts: Callable[..., bool], template: str, parallel: bool
) -> None:
    tokenizer = with_template(template)
    use = ToolUse.of(TOOLS, choice("required"), parallel)
    grammar = use.grammar(tokenizer)
    opening, separator, closing, call = WRITTEN[template]
    weather, now = call % ("get_weather", '{"city": "x"}'), call % ("now", "{}")
    one, two = weather + closing, weather + separator + now + closing
    assert accepts(grammar, one)
    assert accepts(grammar, two) == parallel
    for other in (
        one.replace("city", "town"),
        call % ("now", "3") + closing,
        call % ("now", '{"a": 1}') + closing,
        "Hi",
    ):
        assert not accepts(grammar, other)
    parser = use.parser(tokenizer)
    assert parser is not None
    content, calls = gather([*parser.push(two), *parser.finish()])
    assert content is None
    assert [call.function.name for call in calls] == (["get_weather", "now"] if parallel else ["get_weather"])
    assert tokenizer.decode(use.opening(tokenizer)) == opening


@pytest.mark.parametrize("template", WRITTEN)
def test_an_answer_calls_or_fits_the_format(
    with_template: Callable[[str], Tokenizer], accepts: Callable[..., bool], template: str
) -> None:
    """As OpenAI's Agents SDK asks for both."""
    tokenizer = with_template(template)
    use = ToolUse.of(TOOLS, choice("auto"), None)
    form = FORMAT.validate_python({"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}})
    grammar = answer_grammar(form, None, use, tokenizer)
    opening, _, closing, call = WRITTEN[template]
    assert accepts(grammar, '{"city": "x"}') and not accepts(grammar, '{"town": "x"}')
    assert accepts(grammar, opening + call % ("get_weather", '{"city": "x"}') + closing)
    assert not accepts(grammar, opening + call % ("get_weather", '{"town": "x"}') + closing)
    assert not accepts(grammar, "Hello")
    # A special token by its letters is no call.
    assert accepts(grammar, opening + call % ("now", "{}") + closing, special=False) == (template != "")
    any_object = FORMAT.validate_python({"type": "json_object"})
    assert accepts(answer_grammar(any_object, None, use, tokenizer), '{"town": [1]}')
    forced = ToolUse.of(TOOLS, choice("required"), None)
    assert answer_grammar(form, None, forced, tokenizer) == forced.grammar(tokenizer)


def function_tools(**function: Any) -> Any:
    return TypeAdapter(Tools).validate_python([{"type": "function", "function": {"name": "f", **function}}])


@pytest.mark.parametrize(
    "parameters",
    [{"$schema": "http://json-schema.org/draft-07/schema#"}, {"title": "NoArgs"}, {}, {"type": ["object", "null"]}],
)
def test_arguments_of_a_forced_call_are_an_object(
    tokenizer: Tokenizer, accepts: Callable[..., bool], parameters: dict[str, Any]
) -> None:
    grammar = ToolUse.of(function_tools(parameters=parameters), choice("required"), None).grammar(tokenizer)
    assert accepts(grammar, 'functions.f({"a": 1})\n```')
    assert not accepts(grammar, "functions.f(3)\n```") and not accepts(grammar, "functions.f(null)\n```")


@pytest.mark.parametrize("kind", ["string", ["array", "null"], None])
def test_parameters_that_are_no_object(kind: Any) -> None:
    for value in ("auto", "required"):
        with pytest.raises(UserError, match=r'the function .f. are of "type": .*always an object'):
            ToolUse.of(function_tools(parameters={"type": kind}), choice(value), None)


def test_parameters_that_cannot_be_enforced(tokenizer: Tokenizer, accepts: Callable[..., bool]) -> None:
    tools = function_tools(parameters={"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}})
    assert ToolUse.of(tools, choice("auto"), None).grammar(tokenizer) is None
    grammar = ToolUse.of(tools, choice("required"), None).grammar(tokenizer)
    with pytest.raises(UserError, match=r"behind 'functions.f\(', at #/properties/a: 'uniqueItems' cannot be enforced"):
        accepts(grammar, "")


def test_nothing_is_forced_without_a_choice(tokenizer: Tokenizer) -> None:
    free = ToolUse.of(TOOLS, None, None)
    assert free.opening(tokenizer) == [] and free.grammar(tokenizer) is None and free.parser(tokenizer) is not None
    assert ToolUse().parser(tokenizer) is None


def test_formats_of_an_answer(tokenizer: Tokenizer) -> None:
    assert answer_grammar(None, None, ToolUse(), tokenizer) is None
    assert answer_grammar(FORMAT.validate_python({"type": "text"}), None, ToolUse(), tokenizer) is None
    grammar = answer_grammar(FORMAT.validate_python({"type": "json_object"}), None, ToolUse(), tokenizer)
    assert grammar is not None and grammar.json_object
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    grammar = answer_grammar(FORMAT.validate_python(schema), None, ToolUse(), tokenizer)
    assert grammar is not None and grammar.json_schema is not None
    assert answer_grammar(FORMAT.validate_python(schema), None, ToolUse.of(TOOLS, "none", None), tokenizer) == grammar


@pytest.mark.parametrize(
    "value",
    [
        {"type": "xml"},
        {"type": "json_object", "x": 1},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "a"}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": 3}},
    ],
)
def test_a_format_of_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        FORMAT.validate_python(value)


def test_a_format_out_of_bounds(tokenizer: Tokenizer) -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"items": deep}
    form = FORMAT.validate_python({"type": "json_schema", "json_schema": {"name": "a", "schema": deep}})
    with pytest.raises(UserError, match=r"response_format: .*levels"):
        answer_grammar(form, None, ToolUse(), tokenizer)
