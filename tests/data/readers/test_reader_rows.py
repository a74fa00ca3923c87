"""Rows of JSON to documents: text, messages in every shape that is published, and what comes with them."""

import gzip
import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.data import Documents, Message
from leyden.data.readers.problem import Problem
from leyden.data.readers.rows import document_of, json_value, time_of
from leyden.data.readers.settings import ReadSettings
from leyden.data.sources import SourceFile

FILE = SourceFile(Path("a.jsonl"), "s/a.jsonl", "s")


def _document(row, **settings):
    return document_of(row, FILE, ":1", ReadSettings(**settings))


def _said(row, **settings):
    return [(message.role, message.content) for message in _document(row, **settings).messages]


def test_a_row_with_everything():
    row = {
        "text": "body",
        "url": "http://e.org",
        "timestamp": "2024-01-02T03:04:05+01:00",
        "lang": "de_Latn",
        "stars": 3,
        "nested": {"a": [1, None, math.nan]},
        "empty": None,
    }
    document = _document(row)
    assert (document.id, document.text, document.source) == ("s/a.jsonl:1", "body", "s")
    assert (document.url, document.language) == ("http://e.org", "de")
    assert document.time == datetime(2024, 1, 2, 2, 4, 5, tzinfo=UTC)
    assert document.metadata == {"stars": 3, "nested": {"a": [1, None, None]}}
    assert next(iter(Documents.of([document]))) == document
    assert _document(row, metadata=("stars", "missing")).metadata == {"stars": 3}
    assert _document(row, metadata="none").metadata == {}
    assert _document(row, text="url").text == "http://e.org"
    assert _document({**row, "id": 7}, id="id").id == "s/7"


QUESTION, ANSWER = ("user", "why?"), ("assistant", "so.")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."}]},
            [QUESTION, ANSWER],
        ),
        ({"conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so."}]}, [QUESTION, ANSWER]),
        ({"question": "why?", "answer": "so."}, [QUESTION, ANSWER]),
        ({"question": "why?", "answer": ["so.", "so."]}, [QUESTION, ANSWER]),
        ({"prompt": "why?", "response": "so."}, [QUESTION, ANSWER]),
        ({"instruction": "why?", "input": "", "output": "so."}, [QUESTION, ANSWER]),
        ({"instruction": "Say", "input": "why?", "output": "so."}, [("user", "Say\n\nwhy?"), ANSWER]),
        ({"questions": ["why?", "q"], "answers": ["so.", "a"]}, [QUESTION, ANSWER, ("user", "q"), ("assistant", "a")]),
        ({"context": "It is.", "question": "why?", "answer": "so."}, [("document", "It is."), QUESTION, ANSWER]),
        (  # SQuAD
            {"context": "It is.", "question": "why?", "answers": {"text": ["so."], "answer_start": [3]}},
            [("document", "It is."), QUESTION, ANSWER],
        ),
        ({"system": "Be kind.", "prompt": "why?", "response": "so."}, [("system", "Be kind."), QUESTION, ANSWER]),
        (
            {
                "messages": [
                    {"role": "User", "content": [{"type": "text", "text": "why?"}]},
                    {"role": "tool", "content": "3"},
                ]
            },
            [QUESTION, ("tool", "3")],
        ),
    ],
)
def test_messages(row, said):
    assert _said(row) == said
    assert _said({**row, "text": None, "other": 1}) == said
    document = _document({**row, "other": 1, "language": "en"})
    assert (document.text, document.metadata, document.language) == ("", {"other": 1}, "en")
    assert _document({**row, "text": "t"}).messages == ()
    assert _said({**row, "text": "t"}, rows="messages") == said
    with pytest.raises(Problem, match='no "text"'):
        _document(row, rows="text")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, 'no "text"'),
        ({"text": None}, '"text" is not a string'),
        ({"text": ["a"]}, '"text" is not a string'),
        ({"messages": []}, 'no "text"'),
        ({"messages": "hello"}, "bad messages"),
        ({"messages": ["hello"]}, "bad messages"),
        ({"messages": [{"role": "user"}]}, "bad messages"),
        ({"messages": [{"role": "user", "content": None}]}, "bad messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "bad messages"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "bad messages"),
        ({"messages": [{"role": 3, "content": "x"}]}, "bad messages"),
        ({"questions": ["a", "b"], "answers": ["c"]}, "bad messages"),
        ({"questions": [1], "answers": ["c"]}, "bad messages"),
        ({"question": "a", "answer": 3}, "bad messages"),
        ({"question": 3, "answer": 3}, "bad messages"),
        ({"text": "a", "other": "\ud800"}, "not UTF-8"),
        ({"text": "a", "\udfff": 1}, "not UTF-8"),
    ],
)
def test_a_row_that_is_no_document(row, reason):
    with pytest.raises(Problem) as raised:
        _document(row)
    assert raised.value.reason == reason


def test_what_is_said_of_a_reject_is_bounded(tmp_path, read):
    names = {f"{number}{'x' * 1000}": 1 for number in range(100)}
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", **names}) + "\n")
    [reject] = read(tmp_path / "a.jsonl", id="key")[1]
    assert (reject.reason, len(str(reject)) < 1000) == ('no "key"', True)
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": [{"role": "y" * 10**6, "content": "a"}]}) + "\n")
    assert len(str(read(tmp_path / "b.jsonl")[1])) < 1000


def test_a_missing_id():
    for value in (None, "", 1.5):
        with pytest.raises(Problem, match='no "key"'):
            _document({"text": "a", "key": value}, id="key")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2001-09-09", 999993600),
        ("2001-09-09T01:46:40Z", 10**9),
        ("2001-09-09 03:46:40+02:00", 10**9),
        (10**9, 10**9),
        (10**12, 10**9),
        (1e9, 10**9),
        (datetime(2001, 9, 9, 1, 46, 40), 10**9),
        (datetime(2001, 9, 9).date(), 999993600),
        ("yesterday", None),
        ("0001-01-01T00:00:00+14:00", None),
        (5, None),
        (True, None),
        (math.nan, None),
        (None, None),
    ],
)
def test_times(value, seconds):
    assert time_of(value) == (None if seconds is None else datetime.fromtimestamp(seconds, UTC))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.characters(categories=["Cs"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
NAMES = st.sampled_from(
    [
        *("text", "messages", "conversations", "question", "answer", "answers", "prompt", "response", "instruction"),
        *("input", "output", "context", "system", "url", "time", "language", "other"),
    ]
)
TURN = st.dictionaries(
    st.sampled_from(["role", "from", "content", "value"]), st.sampled_from(["user", "gpt", ""]) | JSON
)


@settings(max_examples=60, deadline=None)
@given(row=st.dictionaries(NAMES, JSON | st.lists(TURN, max_size=3) | st.text(max_size=5)))
def test_any_row_gives_a_document_that_a_batch_holds_or_is_set_aside(tmp_path_factory, read, row):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text(json.dumps(row) + '\n{"text": "next"}\n')
    documents, rejects = read(path)
    assert len(documents) + len(rejects) == 2
    assert documents[-1].text == "next"
    assert list(Documents.of(documents)) == documents
    for document in documents:
        assert all(isinstance(message, Message) for message in document.messages)
        json.loads(json.dumps(document.metadata, allow_nan=False))


def test_json_that_is_nested_too_deeply_is_set_aside(tmp_path, read):
    def nested(levels):
        return '{"text": "a", "other": ' + "[" * levels + "]" * levels + "}\n"

    deep = [60, 70, 400, 900, 990, 1000, 100_000]
    (tmp_path / "a.jsonl").write_text("".join(map(nested, deep)) + '{"text": "next"}\n')
    documents, rejects = read(tmp_path / "a.jsonl")
    assert [document.text for document in documents] == ["a", "next"]
    assert {reject.reason for reject in rejects} <= {"nested too deeply", "not JSON"}
    assert len(rejects) == len(deep) - 1
    with pytest.raises(Problem, match="nested too deeply"):
        json_value(json.loads("[" * 65 + "]" * 65))


@pytest.mark.parametrize("name", ["a.jsonl", pytest.param("a.json", marks=pytest.mark.slow)])
def test_json_of_millions_of_lists_is_set_aside(tmp_path, read, name):
    wide = '{"text": "a", "other": [' + "[]," * 2_000_000 + "[]]}"
    (tmp_path / name).write_text(f'{{"text": "first"}}\n{wide}\n' if name == "a.jsonl" else f"[{wide}]")
    documents, rejects = read(tmp_path / name)
    assert [document.text for document in documents] == ["first"][: name == "a.jsonl"]
    assert [reject.reason for reject in rejects] == ["nested too widely"]


def test_a_number_that_python_does_not_read_is_set_aside(tmp_path, read):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": ' + "9" * 5000 + '}\n{"text": "b", "n": ' + "9" * 400 + "}\n")
    documents, rejects = read(tmp_path / "a.jsonl")
    assert [document.text for document in documents] == ["b"]
    assert [reject.reason for reject in rejects] == ["not JSON"]
    assert list(Documents.of(documents)) == documents


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "texts", "reasons"),
    [
        ('[{"text": "a"}, {"text": "b"}]', ["a", "b"], []),
        ('[\n  {"text": "a"},\n  {"text": "[]{}"}\n]\n', ["a", "[]{}"], []),
        ('{\n  "text": "a"\n}\n', ["a"], []),
        ('{"text": "a"}', ["a"], []),
        ('{"text": "a"}\n{"text": "b"}\n', ["a", "b"], []),
        ('{"text": "a"}\n{bad\n{"text": "b"}\n', ["a", "b"], ["not JSON"]),
        ('[{"text": "a"}, 3, {"text": "b"}]', ["a", "b"], ["not a JSON object"]),
        ('[{"text": "a"}, {"te', ["a"], ["not JSON"]),
        ('[{"text": "a"}', ["a"], ["not JSON"]),
        ('[{"text": "a"}] x', ["a"], ["not JSON"]),
        ('[{"text": "a"}, nonsense, {"text": "b"}]', ["a"], ["not JSON"]),
        ('[{"text": "\udcff"}]', [], ["not UTF-8"]),
        ("[]", [], ["empty"]),
        ("", [], ["empty"]),
        ("[" * 100_000, [], ["not JSON"]),
        ('[{"text": "a"}, {"text": "' + "x" * 5000 + '"}, {"text": "b"}]', ["a"], ["too long"]),
        ('[{"text": "a"}, {"text": "' + "x" * 3_000_000 + '"}, {"text": "b"}]', ["a"], ["too long"]),
    ],
)
def test_a_json_file_of_lines_a_list_or_values(tmp_path, read, packed, content, texts, reasons):
    path = tmp_path / f"a.json{packed}"
    data = content.encode("utf-8", "surrogateescape")
    path.write_bytes(gzip.compress(data) if packed else data)
    limit = 200_000 if content.startswith("[[") else 4000
    for shard_bytes in (10, 1 << 20):
        documents, rejects = read(path, shard_bytes=shard_bytes, max_document_bytes=limit)
        assert [document.text for document in documents] == texts
        assert [reject.reason for reject in rejects] == reasons


def test_a_long_list_is_read_in_pieces(tmp_path, read):
    rows = [{"text": "x" * (n * 37 % 5000)} for n in range(1, 3000)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    documents, rejects = read(tmp_path / "a.json", max_document_bytes=1 << 21)
    assert [document.text for document in documents] == [row["text"] for row in rows if row["text"]]
    assert len(documents) + len(rejects) == len(rows)
