"""Calls of functions in what a model writes, found while it is written.

Three ways of writing them are known; a call by any names one of the functions it was given:

- MiniMax-Text-01's: ``<function_call>``, then a block of TypeScript with one call a line::

      <function_call>```typescript
      functions.get_weather({"city": "Leyden"})
      ```

  The first word is a special token, which text without special tokens lacks; the block is known by its own first line.
- MiniMax-M1's, one JSON object a line::

      <tool_calls>
      {"name": "get_weather", "arguments": {"city": "Leyden"}}
      </tool_calls>

- ``<tool_call>{"name": "get_weather", "arguments": {"city": "Leyden"}}</tool_call>``, the most common one elsewhere.

A call is one from the brace that opens its arguments on; what looks like one and breaks off before is text. From there
on the arguments go out as they come. They end with the brace that closes them, or with the text, and are what the model
wrote, which need not be JSON (OpenAI says the same of its own). Where a JSON object has the arguments before the name,
they are held until the name has come.
"""

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass

import regex

# White space is bounded, so that a model that writes nothing else does not make text wait for ever.
_CALL = r"functions\.(?P<name>{names})\s{{0,2}}\(\s{{0,4}}(?=[{{)])"
_KEY = r'\s{{0,8}}"(?:arguments|parameters)"\s{{0,8}}:\s{{0,8}}(?=\{{)'
_NAME = r'\s{{0,8}}"name"\s{{0,8}}:\s{{0,8}}"(?P<name>{names})"'
_OBJECT = r"\{{(?:" + _NAME + r"\s{{0,8}}," + _KEY + r"|(?P<held>" + _KEY + r"))"
_HEAD = (
    r"(?:<function_call>\s{{0,4}})?```typescript\s{{1,4}}" + _CALL + r"|(?P<tagged><tool_calls?>)\s{{0,8}}" + _OBJECT
)
_TAIL = r"\s{{0,4}}\)[\s;]{{0,8}}(?:```|" + _CALL + ")"
_TAGGED_TAIL = r"\s{{0,8}}\}}[\s,]{{0,8}}(?:</tool_calls?>|" + _OBJECT + ")"
_NAME_BEHIND = r"\s{{0,8}}," + _NAME
_BRACKET = regex.compile(r"\s{0,8}[)}]")
_DELIMITER = regex.compile(r'\\.?|["{}\[\]]', regex.DOTALL)


@dataclass(frozen=True)
class CallDelta:
    """A piece of a call.

    Attributes:
        index: which of the answer's calls.
        arguments: what its arguments go on with.
        id: with the first piece alone.
        name: of the function, with the first piece alone.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


def call_id() -> str:
    """A new name for a call."""
    return f"call_{uuid.uuid4().hex[:24]}"


class ToolParser:
    """Splits an answer into text and calls; however the text is cut into pieces, the parts are the same.

    Args:
        names: of the functions that may be called, at least one.
        parallel: whether an answer may hold several calls; after the first one, the rest is dropped where not.
        new_id: names each call.

    Attributes:
        num_calls: how many have begun.
        done: nothing more can come of this answer: it need not be generated any further.
    """

    def __init__(self, names: Collection[str], *, parallel: bool = True, new_id: Callable[[], str] = call_id) -> None:
        alternatives = "|".join(map(regex.escape, sorted(names)))
        self._head, self._tail, self._tagged_tail, self._name_behind = (
            regex.compile(pattern.format(names=alternatives)) for pattern in (_HEAD, _TAIL, _TAGGED_TAIL, _NAME_BEHIND)
        )
        self._closing: regex.Pattern[str] = self._tail
        self._opening = ""  # of a call whose name comes behind its arguments, and these
        self._arguments = ""
        self._state = self._in_text
        self._parallel = parallel
        self._new_id = new_id
        self._held = ""
        self._space: str | None = ""  # white space at the start of a stretch of text; None inside the stretch
        self._depth = 0
        self._quoted = False
        self._out: list[str | CallDelta] = []
        self.num_calls = 0
        self.done = False

    def push(self, text: str) -> list[str | CallDelta]:
        """What is certain once ``text`` follows."""
        self._held += "" if self.done else text
        while self._held and not self.done and self._state():
            pass
        return self._take()

    def finish(self) -> list[str | CallDelta]:
        """What was held back, now that nothing follows."""
        if self._state == self._in_text:
            self._say(self._held)
            if self._space and not self.num_calls:
                self._out.append(self._space)
        elif self._state == self._in_arguments:
            self._argue(self._held)
        elif self._state != self._behind_arguments:
            self._say(self._opening + self._arguments + self._held)
        self._held = ""
        return self._take()

    def _take(self) -> list[str | CallDelta]:
        out, self._out = self._out, []
        return out

    def _in_text(self) -> bool:
        """Text goes out up to where a call may begin; whether to go on at once."""
        match = self._head.search(self._held, partial=True)
        if match is None:
            self._say(self._held)
            self._held = ""
            return False
        self._say(self._held[: match.start()])
        if match.partial:
            self._held = self._held[match.start() :]
            return False
        self._closing = self._tagged_tail if match["tagged"] else self._tail
        self._begin_call(match)
        return True

    def _begin_call(self, match: "regex.Match[str]") -> None:
        self._held = self._held[match.end() :]
        self._depth, self._quoted = 0, False
        if match.groupdict().get("held") is not None:
            self._opening, self._arguments = match.group(), ""
            self._state = self._before_name
            return
        self._tell(match["name"])
        if self._held.startswith(")"):  # a call without arguments
            self._argue("{}")
            self._end_arguments()
        else:
            self._state = self._in_arguments

    def _tell(self, name: str) -> None:
        self._space = ""
        self._out.append(CallDelta(self.num_calls, id=self._new_id(), name=name))
        self.num_calls += 1

    def _in_arguments(self) -> bool:
        """Arguments go out up to the brace that closes them."""
        self._argue(self._scanned())
        if self._depth == 0:
            self._end_arguments()
        return self._depth == 0

    def _scanned(self) -> str:
        """What is certain of an object in braces, up to the one that closes it; it is held no longer."""
        held, end = self._held, len(self._held)
        for match in _DELIMITER.finditer(held):
            found = match.group()
            if found == "\\":  # the end of this piece hides what is escaped
                end = match.start()
            elif found == '"':
                self._quoted = not self._quoted
            elif not self._quoted and found in "{[":
                self._depth += 1
            elif not self._quoted and found in "}]":
                self._depth -= 1
                if self._depth == 0:
                    end = match.end()
                    break
        self._held = held[end:]
        return held[:end]

    def _before_name(self) -> bool:
        """Arguments are held, up to the brace that closes them and the name that follows; or all of it is text."""
        if self._depth or not self._arguments:
            self._arguments += self._scanned()
            return self._depth == 0 and bool(self._arguments)
        match = self._name_behind.match(self._held, partial=True)
        if match is not None and match.partial:
            return False
        if match is None:
            self._say(self._opening + self._arguments)
            self._state = self._in_text
            return True
        self._held = self._held[match.end() :]
        self._tell(match["name"])
        self._argue(self._arguments)
        self._end_arguments()
        return True

    def _argue(self, text: str) -> None:
        if text:
            self._out.append(CallDelta(self.num_calls - 1, text))

    def _end_arguments(self) -> None:
        self._state = self._behind_arguments
        self.done = not self._parallel

    def _behind_arguments(self) -> bool:
        """The call closes, or another one follows in the same block; what does neither, but for a bracket, is text."""
        match = self._closing.match(self._held, partial=True)
        if match is not None and match.partial:
            return False
        if match is not None and (match.groupdict().get("name") or match.groupdict().get("held") is not None):
            self._begin_call(match)
            return True
        match = match or _BRACKET.match(self._held)
        if match is not None:
            self._held = self._held[match.end() :]
        self._state = self._in_text
        return True

    def _say(self, text: str) -> None:
        """Put out text; white space alone before or between calls is none."""
        if self._space is not None:
            text = self._space + text
            self._space = None if text.strip() else text
        if self._space is None and text:
            self._out.append(text)
