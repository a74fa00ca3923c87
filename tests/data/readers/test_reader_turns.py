"""Turns of dialogues: calls of tools and whatever else carries words is kept, or the dialogue is set aside."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.data import Documents
from leyden.data.readers.problem import Problem
from leyden.data.readers.rows import document_of
from leyden.data.readers.settings import ReadSettings
from leyden.data.sources import SourceFile
from leyden.data.templates import lay_out

FILE = SourceFile(Path("a.jsonl"), "s/a.jsonl", "s")
ASKED = {"role": "user", "content": "Weather in Oslo?"}
TOLD = [{"role": "tool", "content": "sunny"}, {"role": "assistant", "content": "It is sunny."}]
CALL = '```typescript\nfunctions.get_weather({"city": "Oslo"})\n```'
FUNCTION = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}


def _document(row):
    return document_of(row, FILE, ":1", ReadSettings())


def _said(turn):
    return [(m.role, m.content) for m in _document({"messages": [ASKED, turn, *TOLD]}).messages]


@pytest.mark.parametrize("content", [{"content": None}, {}, {"content": ""}])
@pytest.mark.parametrize(
    "call",
    [
        {"tool_calls": [{"id": "1", "type": "function", "function": FUNCTION}]},
        {"tool_calls": [{"type": "function", "function": {**FUNCTION, "arguments": {"city": "Oslo"}}}]},
        {"tool_calls": [FUNCTION]},
        {"tool_calls": json.dumps([{"function": FUNCTION}])},
        {"tool_calls": [{"type": "custom", "custom": {"name": "get_weather", "input": '{"city": "Oslo"}'}}]},
        {"function_call": FUNCTION, "tool_calls": None},
    ],
)
def test_a_turn_that_calls_a_tool_is_kept_with_its_call(content, call):
    expected = [("user", ASKED["content"]), ("assistant", CALL), ("tool", "sunny"), ("assistant", "It is sunny.")]
    assert _said({"role": "assistant", **content, **call}) == expected
    assert _said({"role": "assistant", "content": "I will ask.", **call})[1] == ("assistant", f"I will ask.\n\n{CALL}")


def test_schemas_of_calls_thoughts_and_refusals():
    shared = [
        {"from": "human", "value": "Weather in Oslo?"},
        {"from": "function_call", "value": json.dumps({"name": "get_weather", "arguments": {"city": "Oslo"}})},
        {"from": "observation", "value": "sunny"},
    ]
    messages = _document({"conversations": shared}).messages
    assert [(m.role, m.content) for m in messages][1:] == [("assistant", CALL), ("tool", "sunny")]
    thinking = {"role": "assistant", "content": "Yes.", "reasoning_content": "Is it?"}
    assert _said(thinking)[1] == ("assistant", "<think>\nIs it?\n</think>\n\nYes.")
    assert _said({"role": "assistant", "content": None, "refusal": "No."})[1] == ("assistant", "No.")
    assert _said({"role": "assistant", "content": [{"type": "text", "text": "a"}, "b"]})[1] == ("assistant", "a\n\nb")
    prompt = {"prompt": [ASKED], "completion": [TOLD[1]]}
    assert [m.content for m in _document(prompt).messages] == ["Weather in Oslo?", "It is sunny."]


def test_what_is_not_said_stays_in_the_metadata():
    calls = [{"id": "7", "type": "function", "function": FUNCTION}]
    turns = [
        {**ASKED, "name": "Ola"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "sunny", "tool_call_id": "7", "name": "get_weather"},
    ]
    assert _document({"messages": turns, "tools": ["get_weather"]}).metadata == {
        "tools": ["get_weather"],
        "messages": [
            {"name": "Ola"},
            {"tool_calls": [{"id": "7", "type": "function"}]},
            {"tool_call_id": "7", "name": "get_weather"},
        ],
    }
    assert _document({"question": "why?", "answer": ["so.", "thus."]}).metadata == {"answer": ["so.", "thus."]}
    assert [m.content for m in _document({"text": "", "messages": [ASKED]}).messages] == ["Weather in Oslo?"]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": "", "audio": {"transcript": "It is sunny."}},
        {"role": "assistant", "content": None, "audio": {"transcript": "It is sunny."}},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": "{}"}}]},
        {"role": "assistant", "content": "", "tool_calls": "get_weather()"},
        {"role": "assistant", "content": "", "tool_calls": [3]},
        {"role": "assistant", "content": "", "function_call": 3},
        {"role": "assistant", "content": {"text": "It is sunny."}},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]},
        {"role": "user", "content": [{"type": "tool_result", "content": "sunny"}]},
        {"role": "assistant", "content": "It is sunny.", "weight": 0.5},
        {"type": "function_call", "name": "get_weather", "arguments": "{}"},
    ],
)
def test_a_turn_that_cannot_be_kept_whole_sets_its_dialogue_aside(turn):
    with pytest.raises(Problem) as raised:
        _said(turn)
    assert raised.value.reason == "bad messages"


def test_an_answer_that_is_not_to_be_learned():
    answers = [{"role": "assistant", "content": "Bad.", "weight": 0}, {"role": "assistant", "content": "Good."}]
    [document] = Documents.of([_document({"messages": [ASKED, *answers]})])
    laid = lay_out(document, "plain", "answers")
    assert [laid.text[start:end] for start, end in laid.learned] == ["Good."]
    assert lay_out(document, "plain", "all").learned == ((0, len(laid.text)),)


def test_calls_in_columns(tmp_path, read):
    calls = [{"function": {"name": "get_weather", "arguments": {"city": "Oslo", "unit": None}}}]
    other = [{"function": {"name": "convert", "arguments": {"city": None, "unit": "K"}}}]
    turns = [[ASKED, {"role": "assistant", "content": None, "tool_calls": made}, *TOLD] for made in (calls, other)]
    pq.write_table(pa.table({"messages": turns}), tmp_path / "a.parquet")
    documents, rejects = read(tmp_path / "a.parquet")
    assert rejects == []
    converted = CALL.replace('get_weather({"city": "Oslo"})', 'convert({"unit": "K"})')
    assert [document.messages[1].content for document in documents] == [CALL, converted]
    assert [document.metadata for document in documents] == [{}, {}]
    turn = pa.map_(pa.string(), pa.string())
    said = [[[("role", "user"), ("content", "why?")], [("role", "assistant"), ("content", "so.")]]]
    pq.write_table(pa.table({"messages": pa.array(said, pa.list_(turn))}), tmp_path / "b.parquet")
    assert [m.content for m in read(tmp_path / "b.parquet")[0][0].messages] == ["why?", "so."]


WORDS = st.integers(0, 10**9).map(lambda number: f"w{number}w")
VALUES = st.recursive(
    st.none() | st.booleans() | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "id"]), inner),
    max_leaves=4,
)
CALLS = st.fixed_dictionaries(
    {"name": WORDS},
    optional={"arguments": WORDS | st.dictionaries(WORDS, WORDS, max_size=2), "id": WORDS, "description": WORDS},
)
PARTS = st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}, optional={"note": WORDS})
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "function_call"])},
    optional={
        "content": WORDS | st.just("") | st.lists(PARTS) | VALUES,
        "value": WORDS,
        "tool_calls": st.lists(CALLS | CALLS.map(lambda call: {"function": call}), max_size=2) | VALUES,
        "function_call": CALLS | VALUES,
        **dict.fromkeys(("reasoning_content", "refusal", "name", "weight", "audio", "annotations"), VALUES),
    },
)


@settings(max_examples=150, deadline=None)
@given(turns=st.lists(TURNS, min_size=1, max_size=3))
def test_no_word_of_a_dialogue_is_lost(turns):
    try:
        document = _document({"messages": turns})
    except Problem as problem:
        assert problem.reason == "bad messages"
        return
    kept = json.dumps([[m.content for m in document.messages], document.metadata])
    assert set(re.findall(r"w\d+w", json.dumps(turns))) == set(re.findall(r"w\d+w", kept))
    assert len(document.messages) == len(turns)
