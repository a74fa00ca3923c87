"""Which part of a chat the assistant wrote, for any chat template: what a model is trained to write, and nothing else.

An answer goes from where the model would begin to write it, which is the end of what the template writes to ask for
one, to the token that ends it. A template that says by ``{% generation %}`` what the assistant wrote is believed. Of
every other one the spans are found: the chat is rendered once more with marks, characters of private use, around what
each message says. From the end of the message before an answer, the answer begins behind the first text by which the
template asks for one; from the end of what the answer says, it ends with the first token that ends a text. A message
cannot feign either, since the look-alikes of special tokens in it are broken (:mod:`leyden.tokenizer.chat`).

What was found is checked: marks change nothing else of the text, all that an answer says lies in its span, and nothing
that another message says lies in any. Where the template leaves that undecided, the chat is refused, with the reason.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leyden.core.errors import UserError
from leyden.tokenizer.chat import ChatTemplate, Message, marked, unused_characters
from leyden.tokenizer.sandbox import GENERATION_MARKS

_WORD = "qzvasked"
_ASKED = {"role": "user", "content": _WORD}


@dataclass(frozen=True)
class Answer:
    """One answer in the text of a chat.

    Attributes:
        message: the place of its message in the chat.
        start, end: in the text.
    """

    message: int
    start: int
    end: int


@dataclass(frozen=True)
class AnsweredChat:
    """A rendered chat.

    Attributes:
        text: with every look-alike of a special token broken by ``mark``.
        mark: a character that occurs nowhere else.
        answers: one for each message of the assistant, in order; none touches another.
    """

    text: str
    mark: str
    answers: tuple[Answer, ...]

    def pieces(self) -> Iterator[tuple[str, int]]:
        """The text in pieces that are not empty, each with the message whose answer it is, or -1."""
        end = 0
        for answer in self.answers:
            yield self.text[end : answer.start], -1
            yield self.text[answer.start : answer.end], answer.message
            end = answer.end
        yield self.text[end:], -1


@dataclass(frozen=True)
class _Marks:
    """Marks of one chat.

    Attributes:
        look_alike: breaks the spelling of special tokens.
        generation: before and after what stands in ``{% generation %}``.
        begins, ends: one character for each message, before the first and after the last letter of what it says.
    """

    look_alike: str
    generation: str
    begins: str
    ends: str

    @classmethod
    def unlike(cls, text: str, num_messages: int) -> "_Marks":
        found = unused_characters(text, 3 + 2 * num_messages)
        return cls(found[0], found[1:3], found[3 : 3 + num_messages], found[3 + num_messages :])

    @property
    def places(self) -> str:
        """All that are taken out again."""
        return self.generation + self.begins + self.ends


@dataclass(frozen=True)
class _Marked:
    """A text whose marks were taken out: its other characters, and where each mark stood between them."""

    text: str
    places: Mapping[str, list[int]]

    @classmethod
    def of(cls, text: str, marks: str) -> "_Marked":
        places: dict[str, list[int]] = {}
        pieces, length, end = [], 0, 0
        for match in re.finditer(f"[{re.escape(marks)}]", text):
            pieces.append(text[end : match.start()])
            length += match.start() - end
            end = match.end()
            places.setdefault(match[0], []).append(length)
        return cls("".join([*pieces, text[end:]]), places)


class AnswerFinder:
    """Finds the answers in the chats of one template.

    Args:
        template: the chats'.
        special: every special token.
        ends: those that end a text.
    """

    def __init__(self, template: ChatTemplate, special: Sequence[str], ends: Sequence[str]) -> None:
        self._template, self._special = template, special
        self._end = re.compile("|".join(map(re.escape, sorted(ends, key=len, reverse=True))))
        self._any_special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        self._requests: dict[str, str] = {}
        self._tails: dict[tuple[str, bool], str] = {}

    def find(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> AnsweredChat:
        """The chat as text, with every answer in it.

        Args:
            messages, tools, variables: as of :meth:`ChatTemplate.render`.

        Raises:
            UserError: as :meth:`ChatTemplate.render_marked` does; or the template leaves it undecided where an answer
                begins or ends, and how.
        """
        plain, given = self._template.rendered(messages, tools, False, variables)
        marks = _Marks.unlike(plain, len(messages))
        found = self._marked_text(plain, given, marks)
        if marks.generation[0] in found.places:
            answers = self._by_generation(found, messages, marks)
        else:
            answers = self._by_requests(found, messages, tools, variables, marks)
        _check(found, messages, marks, answers)
        return AnsweredChat(found.text, marks.look_alike, answers)

    def _marked_text(self, plain: str, given: list[Any], marks: _Marks) -> _Marked:
        """The chat with its marks taken out again, without those at beginnings if the template acts on them."""
        messages, tools, others = marked(given, self._special, marks.look_alike)
        variables = {**(others or {}), **dict(zip(GENERATION_MARKS, marks.generation, strict=True))}
        for begins in (marks.begins, [""] * len(messages)):
            said = list(map(_mark_message, messages, begins, marks.ends))
            text = self._template.text(said, tools, False, variables)
            found = _Marked.of(text, marks.places)
            if found.text.replace(marks.look_alike, "") == plain:
                return found
        raise UserError(
            "The chat template acts upon how a message begins or ends, or upon the text of a special token in one, so "
            "that what the assistant wrote cannot be told; mark it in the template by {% generation %} and "
            f"{{% endgeneration %}}, or change the message. Special tokens are: {' '.join(self._special)}"
        )

    def _by_generation(self, found: _Marked, messages: Sequence[Message], marks: _Marks) -> tuple[Answer, ...]:
        """The answers as the template itself marks them, each with the end token that follows it."""
        spans = list(zip(*(found.places.get(mark, []) for mark in marks.generation), strict=False))
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        if len(spans) != len(places):
            raise UserError(
                f"The chat template has {len(spans)} passages between {{% generation %}} and {{% endgeneration %}}, "
                f"and the chat {len(places)} messages of the assistant; it must mark each once."
            )
        ends = [self._end.match(found.text, end) for _, end in spans]
        return tuple(
            Answer(place, start, end if token is None else token.end())
            for place, (start, end), token in zip(places, spans, ends, strict=True)
        )

    def _by_requests(
        self,
        found: _Marked,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] | None,
        marks: _Marks,
    ) -> tuple[Answer, ...]:
        request = self._request(variables)
        answers: list[Answer] = []
        behind = 0
        for place, message in enumerate(messages):
            said = found.places.get(marks.ends[place], [])
            if message["role"] != "assistant":
                # What a template moves to the front or to the end does not say where the next answer begins.
                behind = max(behind, said[-1]) if said and message["role"] != "system" else behind
                continue
            if request:
                at = found.text.find(request, behind)
                start = at + len(request) if at >= 0 else -1
            else:
                start = self._behind_tail(found.text, behind, messages[:place], tools, variables)
            if start < 0 or (said and start > said[-1]):
                raise _not_asked(place, request)
            end = self._end_of(found, place, max([start, *said]), marks, bool(message.get("tool_calls")))
            answers.append(Answer(place, start, end))
            behind = end
        return tuple(answers)

    def _request(self, variables: Mapping[str, Any] | None) -> str:
        """What the template writes to ask for an answer; empty where that is nothing."""
        key = repr(variables)
        if key not in self._requests:
            told = self._template.render([_ASKED], None, False, variables).rpartition(_WORD)[2]
            asked = self._template.render([_ASKED], None, True, variables).rpartition(_WORD)[2]
            alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(told, asked, strict=False))
            self._requests[key] = asked[sum(1 for _ in alike) :]
        return self._requests[key]

    def _behind_tail(
        self,
        text: str,
        behind: int,
        before: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] | None,
    ) -> int:
        """Where an answer begins of a template that writes nothing to ask for one; -1: that cannot be told.

        The chat up to there ends as its last message does: what follows the words of that message is looked for.
        """
        if not before:
            return -1
        key = (before[-1]["role"], bool(tools))
        for tail in (self._tails.get(key), None):
            if tail is None:
                tail = self._tails[key] = self._tail(before, tools, variables)
            if text.startswith(tail, behind):
                return behind + len(tail)
        return -1

    def _tail(
        self,
        before: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] | None,
    ) -> str:
        plain, given = self._template.rendered(before, tools, True, variables)
        marks = _Marks.unlike(plain, 1)
        messages, tools, others = marked(given, self._special, marks.look_alike)
        said = [*messages[:-1], _mark_message(messages[-1], "", marks.ends)]
        text = self._template.text(said, tools, True, others)
        return text.rpartition(marks.ends)[2]

    def _end_of(self, found: _Marked, place: int, behind: int, marks: _Marks, calls: bool) -> int:
        """Where an answer ends whose words end at ``behind``: with the first token that ends a text.

        Of a template whose answers end with another special token, that one ends them, unless the answer has calls,
        which may be written with special tokens of their own.
        """
        others = (at for mark, at in found.places.items() if mark not in (marks.begins[place], marks.ends[place]))
        limit = min((one for at in others for one in at if one > behind), default=len(found.text))
        match = self._end.search(found.text, behind, limit)
        if match is None and not calls:
            match = self._any_special.search(found.text, behind, limit)
        if match is None:
            raise UserError(
                f"The chat template writes no special token that ends the answer of message {place}, so that a model "
                "trained on it would never stop; take a template that ends answers, with a token that the tokenizer "
                "names as eos_token."
            )
        return match.end()


def _mark_message(message: Message, begin: str, end: str) -> Message:
    """``message`` in a template's form with marks around what it says, inside the white space that may be trimmed."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": _mark_words(content, begin, end)}
    texts = [n for n, part in enumerate(content or ()) if part.get("type") == "text" and part["text"].strip()]
    if not texts or content is None:
        return message
    parts = [dict(part) for part in content]
    parts[texts[0]]["text"] = _mark_words(parts[texts[0]]["text"], begin, "")
    parts[texts[-1]]["text"] = _mark_words(parts[texts[-1]]["text"], "", end)
    return {**message, "content": parts}


def _mark_words(text: str, begin: str, end: str) -> str:
    words = text.strip()
    if not words:
        return text
    start = text.index(words)
    return text[:start] + begin + words + end + text[start + len(words) :]


def _check(found: _Marked, messages: Sequence[Message], marks: _Marks, answers: Sequence[Answer]) -> None:
    """Refuse spans that leave out what their message says, hold what another one says, or overlap.

    Raises:
        UserError: which message it is.
    """
    span_of = {answer.message: answer for answer in answers}
    if any(one.end > two.start for one, two in itertools.pairwise(answers)):
        raise UserError("The chat template writes the answers in another order than they are in.")
    for place, message in enumerate(messages):
        at = [*found.places.get(marks.begins[place], []), *found.places.get(marks.ends[place], [])]
        own = span_of.get(place)
        if own is not None and not all(own.start <= one <= own.end for one in at):
            raise UserError(
                f"What message {place} (assistant) says is not all between where the chat template lets an answer "
                "begin and where it ends; mark answers in the template by {% generation %} and {% endgeneration %}."
            )
        inside = [answer for answer in answers for one in at if answer.start < one < answer.end]
        if own is None and inside:
            raise UserError(
                f"The chat template writes what message {place} ({message['role']}) says inside of the answer of "
                f"message {inside[0].message}, which the assistant did not write."
            )


def _not_asked(place: int, request: str) -> UserError:
    asked = f"by {request!r}" if request else "without a text of its own"
    return UserError(
        f"Where the answer of message {place} begins cannot be told: the chat template asks for an answer {asked}, and "
        "does not write this one behind that; mark answers in the template by {% generation %} and "
        "{% endgeneration %}, or take a template that writes answers as it asks for them."
    )
