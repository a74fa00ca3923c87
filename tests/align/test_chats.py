"""The schemas in which chats are published, in one normal form; what is malformed is set aside with row and reason."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leyden.align.chats import chat_of, preference_of, read_chats, read_preferences
from leyden.core.errors import UserError
from leyden.data.readers.problem import Problem

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
S = {"role": "system", "content": "s"}
CALL = {"id": "c1", "type": "function", "function": {"name": "sky", "arguments": '{"town": "Leyden"}'}}
ROWS = {
    "messages": ({"messages": [S, Q, A]}, [S, Q, A]),
    "sharegpt": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [Q, A]),
    "sharegpt with system": ({"conversations": [Q, A], "system": "s"}, [S, Q, A]),
    "alpaca": ({"instruction": "q", "input": "", "output": "a"}, [Q, A]),
    "alpaca with input": (
        {"instruction": "q", "input": "of this", "output": "a", "text": "whole"},
        [{"role": "user", "content": "q\n\nof this"}, A],
    ),
    "alpaca with history": (
        {"instruction": "q", "output": "a", "history": [["q0", "a0"]]},
        [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}, Q, A],
    ),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, [Q, A]),
    "prompt and completion in turns": ({"prompt": [Q], "completion": [A]}, [Q, A]),
    "question about a document": (
        {"context": "d", "question": "q", "answer": "a"},
        [{"role": "user", "content": "d\n\nq"}, A],
    ),
    "thoughts": (
        {"messages": [Q, {**A, "reasoning_content": "t"}]},
        [Q, {"role": "assistant", "content": "<think>\nt\n</think>\n\na"}],
    ),
    "transcript": ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, [Q, A]),
    "calls": (
        {
            "messages": [
                Q,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "grey"},
                A,
            ]
        },
        [
            Q,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "grey"},
            A,
        ],
    ),
    "calls without ids": (
        {
            "conversations": [
                Q,
                {"from": "function_call", "value": '{"name": "sky", "arguments": {"town": "Leyden"}}'},
                {"from": "observation", "value": "grey"},
                A,
            ]
        },
        [
            Q,
            {"role": "assistant", "content": None, "tool_calls": [CALL | {"id": "call00000"}]},
            {"role": "tool", "tool_call_id": "call00000", "content": "grey"},
            A,
        ],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_schema_becomes_messages(name):
    row, messages = ROWS[name]
    chat = chat_of(row, "id", "source")
    assert list(chat.messages) == messages
    assert chat.learned == tuple(message["role"] == "assistant" for message in messages)


def test_an_answer_can_be_left_out_of_the_loss_and_tools_are_wrapped():
    bare = {"name": "sky", "parameters": {}}
    row = {"messages": [Q, {**A, "weight": 0}, Q, A], "tools": json.dumps([bare])}
    chat = chat_of(row, "id", "source")
    assert chat.learned == (False, False, False, True)
    assert chat.tools == ({"type": "function", "function": bare},)


B = {"role": "assistant", "content": "b"}
PAIRS = {
    "texts": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "turns": {"prompt": [Q], "chosen": [A], "rejected": [B]},
    "no prompt": {"chosen": [Q, A], "rejected": [Q, B]},
    "a prompt that is repeated": {"prompt": "q", "chosen": [Q, A], "rejected": [Q, B]},
    "sharegpt": {"conversations": [Q], "chosen": {"from": "gpt", "value": "a"}, "rejected": B},
    "transcripts": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "a transcript and texts": {"prompt": "\n\nHuman: q", "chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_becomes_prompt_chosen_and_rejected(name):
    pair = preference_of(PAIRS[name], "id", "source")
    assert (pair.prompt, pair.chosen, pair.rejected) == ((Q,), (A,), (B,))


def test_the_prompt_of_a_pair_is_what_both_have_alike():
    pair = preference_of({"chosen": [Q, A, Q, A, Q, A], "rejected": [Q, A, Q, B]}, "id", "source")
    assert (pair.prompt, pair.chosen, pair.rejected) == ((Q, A, Q), (A, Q, A), (B,))


@pytest.mark.parametrize(
    ("make", "row", "reason"),
    [
        (chat_of, {"messages": []}, "no chat"),
        (chat_of, {"messages": [Q]}, "no answer"),
        (chat_of, {"messages": [Q, {**A, "weight": 0}]}, "no answer"),
        (chat_of, {"messages": [Q, {"role": "assistant", "content": " "}]}, "empty message"),
        (chat_of, {"messages": [Q, {"role": "wizard", "content": "x"}]}, "bad messages"),
        (chat_of, {"messages": [Q, {"role": "tool", "content": "x"}, A]}, "bad messages"),
        (chat_of, {"messages": [Q, A], "tools": "{"}, "bad tools"),
        (preference_of, {"prompt": "q", "chosen": "a", "rejected": "a"}, "equal answers"),
        (preference_of, {"chosen": [Q, A], "rejected": [{"role": "user", "content": "?"}, B]}, "no answer"),
        (preference_of, {"messages": [Q, A]}, "no pair"),
    ],
)
def test_what_is_malformed_has_a_reason(make, row, reason):
    with pytest.raises(Problem) as problem:
        make(row, "id", "source")
    assert problem.value.reason == reason


def test_files_are_read_and_bad_rows_are_set_aside_with_their_place(tmp_path):
    lines = [
        json.dumps({"messages": [Q, A]}),
        "{",
        json.dumps({"messages": [Q]}),
        json.dumps({"prompt": "q", "response": "a"}),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    table = pa.Table.from_pylist([{"messages": [Q, call]}, {"messages": [Q, A]}])
    pq.write_table(table, tmp_path / "b.parquet")
    (tmp_path / "README.md").write_text("words")
    rejects = []
    chats = list(read_chats([str(tmp_path)], rejects))
    assert [chat.id.rpartition("/")[2] for chat in chats] == ["a.jsonl:1", "a.jsonl:4", "b.parquet:1", "b.parquet:2"]
    assert [chat.source for chat in chats] == [
        str(tmp_path / name) for name in ("a.jsonl", "a.jsonl", "b.parquet", "b.parquet")
    ]
    assert chats[2].messages[1] == call
    assert {(reject.place, reject.reason) for reject in rejects} == {
        ("line 2", "not JSON"),
        ("row 3", "no answer"),
        ("", "no rows"),
    }
    (tmp_path / "pairs.json").write_text(json.dumps([PAIRS["texts"], {"messages": [Q, A]}]), encoding="utf-8")
    rejects.clear()
    assert len(list(read_preferences([str(tmp_path / "pairs.json")], rejects))) == 1
    assert [str(reject) for reject in rejects] == [
        f"{tmp_path}/pairs.json, row 2: no pair (there are no columns chosen and rejected)"
    ]
    with pytest.raises(UserError, match="no file of chats"):
        list(read_chats([str(tmp_path / "README.md")], []))
