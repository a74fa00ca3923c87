"""Nested documents laid out as text, at the very end of the data's way, by a family of templates.

MiniMax-01 (arXiv 2501.08313, section 4.1) keeps web pages and books as they are, and nests dialogues and questions and
answers in documents with versatile templates, so that a model meets many forms of them and yet each document keeps one.
The paper prints no template; these are ours. What was said stands in the text verbatim, in its order.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from leyden.data.documents import Document, Message

Style = Literal["plain", "light", "varied", "joined"]
"""``plain``: contents alone, empty lines between them. ``joined``: nothing between them. ``light``: each with a word
for its speaker. ``varied``: one of :data:`TEMPLATES`, by the document's id."""

Learn = Literal["all", "answers"]
"""What carries loss: all of the text, as in pre-training, or what the assistant says alone."""


@dataclass(frozen=True)
class Template:
    """How messages become text.

    Attributes:
        openings: what is written before a content, by role; ``{}`` in it is the number of the question, from 1. A role
            that is not named gets nothing.
        between: what is written between a question and its answer, and wherever nothing else is said.
        between_rounds: what is written before a question, but the first of a text.
        closings: what is written after a content, by role.
    """

    openings: Mapping[str, str]
    between: str = "\n\n"
    between_rounds: str = "\n\n"
    closings: Mapping[str, str] | None = None


@dataclass(frozen=True)
class LaidOut:
    """A document as text.

    Attributes:
        text: all of it.
        learned: half-open ranges of characters that carry loss, in order, not empty, none overlapping the next.
    """

    text: str
    learned: tuple[tuple[int, int], ...]


def _speakers(user: str, assistant: str, document: str = "", system: str = "", tool: str = "") -> dict[str, str]:
    return {"user": user, "assistant": assistant, "document": document, "system": system, "tool": tool}


PLAIN = Template({})
JOINED = Template({}, between="", between_rounds="")
LIGHT_QUESTIONS = Template(_speakers("Question: ", "Answer: "), between="\n")
LIGHT_DIALOGUE = Template(_speakers("User: ", "Assistant: ", tool="Tool: "), between="\n", between_rounds="\n")

QUESTIONS: tuple[Template, ...] = (
    PLAIN,
    Template({}, between="\n"),
    LIGHT_QUESTIONS,
    Template(_speakers("Q: ", "A: "), between="\n"),
    Template(_speakers("Question: ", "Answer: ", "Context: "), between="\n\n"),
    Template(_speakers("Question {}: ", "Answer {}: "), between="\n"),
    Template(_speakers("{}. ", ""), between="\n"),
    Template(_speakers("{}. ", "Answer: ", "Read the following text.\n\n"), between="\n"),
    Template(_speakers("Problem: ", "Solution: "), between="\n\n"),
    Template(_speakers("### Question\n", "### Answer\n", "### Text\n")),
    Template(_speakers("## {}. ", ""), between="\n\n"),
    Template(_speakers("**Q:** ", "**A:** "), between="\n\n"),
    Template(_speakers("**", ""), closings={"user": "**"}),
    Template(_speakers("Question:\n", "Answer:\n", "Text:\n"), between_rounds="\n\n---\n\n"),
    Template(_speakers("> ", ""), between="\n\n"),
)
"""For questions and answers, with or without a text that they are about."""

DIALOGUES: tuple[Template, ...] = (
    PLAIN,
    LIGHT_DIALOGUE,
    Template(_speakers("User: ", "Assistant: ", "Document: ", tool="Tool: ")),
    Template(_speakers("Human: ", "AI: ", tool="Tool: "), between="\n", between_rounds="\n"),
    Template(_speakers("A: ", "B: ", tool="C: "), between="\n", between_rounds="\n"),
    Template(_speakers("Q: ", "A: ", tool="Result: "), between="\n"),
    Template(_speakers("- ", "- ", tool="- "), between="\n", between_rounds="\n"),
    Template(_speakers("— ", "— ", tool="— "), between="\n", between_rounds="\n"),
    Template(_speakers("**User:** ", "**Assistant:** ", tool="**Tool:** ")),
    Template(_speakers("### User\n", "### Assistant\n", "### Document\n", "### System\n", "### Tool\n")),
    Template(_speakers("User:\n", "Reply:\n", tool="Output:\n"), between_rounds="\n\n---\n\n"),
    Template(_speakers("[user] ", "[assistant] ", "[document] ", "[system] ", "[tool] "), "\n", "\n"),
)
"""For dialogues."""

TEMPLATES = {"questions": QUESTIONS, "dialogues": DIALOGUES}
"""The family that ``varied`` draws from."""


def lay_out(document: Document, style: Style = "varied", learn: Learn = "all") -> LaidOut:
    """A document as text, with what of it carries loss.

    Args:
        document: one without messages is its text, all of it learned.
        style: how messages are set off; ``varied`` depends on the document's id and kind alone.
        learn: ``all``, or ``answers``: exactly the contents of role ``assistant`` that are to be learned.
    """
    if not document.messages:
        return _learned_whole(document.text)
    pieces = list(_pieces(document.messages, template_of(document, style)))
    text = "".join(piece for piece, _ in pieces)
    if learn == "all":
        return _learned_whole(text)
    spans: list[tuple[int, int]] = []
    end = 0
    for piece, is_answer in pieces:
        start, end = end, end + len(piece)
        if is_answer and piece:
            spans.append((start, end))
    return LaidOut(text, tuple(spans))


def template_of(document: Document, style: Style) -> Template:
    """The template of a nested document."""
    kind = "dialogues" if is_dialogue(document.messages) else "questions"
    if style == "plain":
        return PLAIN
    if style == "joined":
        return JOINED
    if style == "light":
        return LIGHT_DIALOGUE if kind == "dialogues" else LIGHT_QUESTIONS
    family = TEMPLATES[kind]
    digest = hashlib.blake2b(document.id.encode(), digest_size=8, person=b"templates").digest()
    return family[int.from_bytes(digest, "big") % len(family)]


def is_dialogue(messages: tuple[Message, ...]) -> bool:
    """Whether these are turns of one dialogue, and not questions that stand alone or share a document."""
    roles = [message.role for message in messages]
    if "document" in roles[:2] and "tool" not in roles:
        return False
    return roles.count("user") != 1 or roles.count("assistant") != 1 or "tool" in roles


def _learned_whole(text: str) -> LaidOut:
    return LaidOut(text, ((0, len(text)),) if text else ())


def _pieces(messages: tuple[Message, ...], template: Template) -> Iterator[tuple[str, bool]]:
    """The text in pieces, each with whether it is the content of an answer."""
    closings = template.closings or {}
    num_questions = 0
    before = ""
    for message in messages:
        num_questions += message.role == "user"
        begins_round = message.role == "user" and num_questions > 1
        opening = template.openings.get(message.role, "").replace("{}", str(max(num_questions, 1)))
        yield (template.between_rounds if begins_round else template.between if before else "") + opening, False
        yield message.content, message.role == "assistant" and message.learned
        yield closings.get(message.role, ""), False
        before = message.role
