"""Nested documents laid out: what was said stands in the text in its order, and the spans hold what is learned."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.data import Document, Message
from leyden.data.templates import DIALOGUES, QUESTIONS, TEMPLATES, lay_out, template_of

ROLES = ("system", "user", "assistant", "tool", "document")
MESSAGES = st.lists(st.builds(Message, st.sampled_from(ROLES), st.text(max_size=20)), min_size=1, max_size=8).map(tuple)
STYLES = st.sampled_from(["plain", "light", "varied", "joined"])


def _document(messages, name="d"):
    return Document(name, "", "s", messages=tuple(messages))


@given(messages=MESSAGES, style=STYLES, name=st.text(max_size=5))
def test_contents_stand_in_their_order_and_answers_are_learned(messages, style, name):
    document = _document(messages, name)
    laid_out = lay_out(document, style, "answers")
    answers = [m.content for m in messages if m.role == "assistant" and m.content]
    assert [laid_out.text[start:end] for start, end in laid_out.learned] == answers
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(laid_out.learned))
    # What is not learned, taken apart by the learned, holds the other contents in order.
    place = 0
    answered = iter(laid_out.learned)
    for message in messages:
        if message.role == "assistant" and message.content:
            start, end = next(answered)
            assert start >= place
        else:
            start = laid_out.text.index(message.content, place)
            end = start + len(message.content)
        place = end
    assert lay_out(document, style) == lay_out(document, style, "all")
    whole = lay_out(document, style)
    assert whole.text == laid_out.text
    assert whole.learned == (((0, len(whole.text)),) if whole.text else ())


@given(text=st.text(), style=STYLES, learn=st.sampled_from(["all", "answers"]))
def test_a_document_without_messages_is_its_text(text, style, learn):
    laid_out = lay_out(Document("d", text, "s"), style, learn)
    assert laid_out.text == text
    assert laid_out.learned == (((0, len(text)),) if text else ())


QA = (Message("document", "It rained."), Message("user", "Why?"), Message("assistant", "So."), Message("user", "When?"))
TALK = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye"))


def test_by_hand():
    assert lay_out(_document(QA), "plain").text == "It rained.\n\nWhy?\n\nSo.\n\nWhen?"
    assert lay_out(_document(QA), "joined").text == "It rained.Why?So.When?"
    assert lay_out(_document(QA), "light").text == "It rained.\nQuestion: Why?\nAnswer: So.\n\nQuestion: When?"
    assert lay_out(_document(TALK), "light").text == "Be kind.\nUser: Hi\nAssistant: Hello\nUser: Bye"
    assert lay_out(_document(QA), "light", "answers").learned == ((34, 37),)
    assert lay_out(_document(TALK[1:3]), "light").text == "Question: Hi\nAnswer: Hello"


def test_varied_depends_on_the_id_alone_and_uses_the_whole_family():
    for messages, family in ((QA, QUESTIONS), (TALK, DIALOGUES)):
        names = [f"document {number}" for number in range(200 * len(family))]
        used = Counter(family.index(template_of(_document(messages, name), "varied")) for name in names)
        assert len(used) == len(family)
        assert all(120 < count < 300 for count in used.values())
        texts = {lay_out(_document(messages, name)).text for name in names}
        assert len(texts) == len(family)
        assert lay_out(_document(messages, "a")) == lay_out(_document([*messages], "a"))


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_differ_and_keep_turns_apart(kind):
    family = TEMPLATES[kind]
    assert all(a != b for a, b in itertools.combinations(family, 2))
    assert all(template.between and template.between_rounds for template in family)
    assert all(set(template.openings) <= set(ROLES) for template in family)
