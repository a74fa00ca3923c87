"""The stage ``recall``: every question has one answer, which stands before it, and nothing else of a text changes."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data.documents import Document, Documents, Message
from leyden.data.label import Recall
from leyden.data.templates import lay_out

_FACT = re.compile(r"The special magic (\w+) number is: (\d+)\.")
_ASKED = re.compile(r"What is the special magic (\w+) number\? The special magic (\w+) number is: (\d+)\.")
_TEXT = "".join(
    f"line {n} of a document about {word}\n" for n, word in enumerate(["many", "words", "of", "all", "kinds"] * 40)
)


def _stage(**settings: object) -> Recall:
    return Recall.parse({"kind": "recall", **settings}, "test")


def _documents(*texts: str | None) -> Documents:
    """One document for each text; a dialogue for None."""
    turn = (Message(role="user", content=_TEXT),)
    return Documents.of(
        Document(f"d{n}", "", "web", messages=turn) if text is None else Document(f"d{n}", text, "web")
        for n, text in enumerate(texts)
    )


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=3000), st.integers(64, 600))
def test_each_question_is_answered_by_the_one_fact_before_it(text: str, every: int) -> None:
    made, questions = _stage(every_bytes=every).plant(text)

    facts: dict[str, str] = {}
    asked = 0
    for line in made.split("\n"):
        if question := _ASKED.fullmatch(line):
            assert question[1] == question[2] and facts[question[1]] == question[3]
            asked += 1
        elif fact := _FACT.fullmatch(line):
            assert fact[1] not in facts, "a name has one number"
            facts[fact[1]] = fact[2]
    assert asked == questions == len(facts) >= 1


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=3000))
def test_the_rest_of_a_text_stays_as_it_was(text: str) -> None:
    made, _ = _stage().plant(text)

    left = re.sub(r"\n(What is the special magic \w+ number\? )?The special magic \w+ number is: \d+\.\n", "", made)
    assert left.removesuffix("\n") == text.removesuffix("\n")


def test_questions_stand_near_and_far() -> None:
    text = "".join(
        f"entry number{n} with wordling{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}xyz in it\n" for n in range(9000)
    )
    made, questions = _stage(every_bytes=500).plant(text)
    places = {match[1]: match.start() for match in reversed(list(_FACT.finditer(made)))}
    distances = [match.start() - places[match[1]] for match in _ASKED.finditer(made)]

    assert questions > 200
    near, far = sum(d < 2_000 for d in distances), sum(d > 50_000 for d in distances)
    assert near > 0.2 * questions and far > 0.1 * questions


def test_documents_are_chosen_by_their_content(tmp_path: Path) -> None:
    texts = [f"document {n}\n" + _TEXT for n in range(200)]
    stage = _stage(share=0.25)
    made = stage.apply(_documents(*texts), "s", tmp_path).texts()
    backwards = stage.apply(_documents(*reversed(texts)), "s", tmp_path).texts()

    changed = sum(new != old for new, old in zip(made, texts, strict=True))
    assert 30 <= changed <= 70
    assert made == list(reversed(backwards))


def test_short_documents_and_dialogues_are_left_alone(tmp_path: Path) -> None:
    given = _documents("short", None, _TEXT)
    made = _stage(share=1.0).apply(given, "s", tmp_path)

    assert made.column("text")[:2] == ["short", None]
    assert made.column("messages") == given.column("messages")
    assert made.scores("planted")[2] > 3


def test_added_documents_have_a_source_of_their_own(tmp_path: Path) -> None:
    made = _stage(share=1.0, mode="add", source="long-qa").apply(_documents("short", _TEXT), "s", tmp_path)

    assert made.column("id") == ["d0", "d1", "d1#recall"]
    assert made.column("source")[2] == "long-qa" and made.column("source")[1] == "web"
    assert made.column("text")[1] == _TEXT and "special magic" in made.column("text")[2]


def test_a_share_outside_its_bounds_is_refused() -> None:
    with pytest.raises(UserError, match="share"):
        _stage(share=0.0)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=3000))
def test_pieces_ask_for_all_of_their_facts_and_hold_the_whole_text(text: str) -> None:
    left = ""
    for messages in _stage(learn="answers", mode="add").pieces(text):
        whole = "".join(message.content for message in messages)
        questions = whole.index("\n\nWhat is the special magic ")
        facts = dict(_FACT.findall(whole[:questions]))
        asked = {match[1]: match[3] for match in _ASKED.finditer(whole) if match[1] == match[2]}
        assert asked == facts and [message.role for message in messages] == ["user", "assistant"] * len(facts)
        answers = [message.content for message in messages if message.role == "assistant"]
        assert answers == [f" {number}." for number in asked.values()]
        left += re.sub(r"\nThe special magic \w+ number is: \d+\.\n", "", whole[:questions])
    assert left == text


def test_pieces_stand_beside_their_document_and_only_answers_are_learned() -> None:
    made = _stage(share=1, learn="answers", mode="add", source="far").apply(_documents(_TEXT, None), "", Path())
    documents = list(made)
    assert [document.id for document in documents[:3]] == ["d0", "d1", "d0#recall-1"]
    assert documents[0].text == _TEXT and {document.source for document in documents[2:]} == {"far"}
    laid = lay_out(documents[2], "joined", "answers")
    assert [laid.text[start:end] for start, end in laid.learned] == re.findall(r"(?<=is:) \d+\.$", laid.text, re.M)[
        len(laid.learned) :
    ]
    with pytest.raises(UserError, match='mode = "add"'):
        _stage(learn="answers")
