"""Functions that a model may call: how a request declares them, and what of it the engine has to see to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from leyden.core.errors import UserError, suggest
from leyden.serve.http.chat_messages import CalledFunction, Name, ToolCall
from leyden.serve.http.protocol.common import Wire
from leyden.serve.http.tool_parser import CallDelta, ToolParser
from leyden.serve.sampling import Grammar
from leyden.tokenizer import Tokenizer

_MAX_TOOLS = 128  # as OpenAI
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class _Form:
    """How calls are written: ``opening``, calls with ``separator`` between them, ``closing``."""

    opening: str
    begin: str
    end: str
    separator: str
    closing: str


_MINIMAX = _Form("<function_call>```typescript\n", "functions.%s(", ")", "\n", "\n```")
_LISTED = _Form("<tool_calls>\n", '{"name": "%s", "arguments": ', "}", "\n", "\n</tool_calls>")
_TAGGED = _Form("<tool_call>\n", '{"name": "%s", "arguments": ', "}\n</tool_call>", "\n<tool_call>\n", closing="")


class FunctionDefinition(Wire):
    """A function, its parameters as a JSON schema; ``strict`` is for OpenAI's sake: forced calls always keep to it."""

    name: Name
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class FunctionTool(Wire):
    """A function that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Wire):
    """The function to call."""

    name: Name


class NamedToolChoice(Wire):
    """The answer is to call this function."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice
Tools = Annotated[list[FunctionTool], Field(max_length=_MAX_TOOLS)]


@dataclass(frozen=True)
class ToolUse:
    """What a request's tools mean for the answer.

    Attributes:
        tools: for the chat template; None where the model is to know of none.
        names: of the functions that the answer may call; none where it is read as text alone.
        schemas: of their parameters.
        forced: of those, the ones of which the answer must call one, with their parameters' schemas.
        parallel: whether it may call several.
    """

    tools: tuple[dict[str, Any], ...] | None = None
    names: tuple[str, ...] = ()
    schemas: dict[str, Any] = field(default_factory=dict)
    forced: dict[str, Any] | None = None
    parallel: bool = True

    @classmethod
    def of(cls, tools: Sequence[FunctionTool] | None, choice: ToolChoice | None, parallel: bool | None) -> "ToolUse":
        """Read a request's ``tools``, ``tool_choice`` and ``parallel_tool_calls``; none of them need be there.

        Raises:
            UserError: two tools of one name, a choice without tools or of one that is not among them, parameters that
                are no schema of objects or out of bounds.
        """
        if not tools:
            if choice not in (None, "none", "auto"):
                raise UserError('"tool_choice" asks for a call, but "tools" is empty; list the functions there.')
            return cls()
        schemas = {tool.function.name: _of_objects(tool.function) for tool in tools}
        if len(schemas) != len(tools):
            raise UserError('two of "tools" have the same function.name; names are unique.')
        if choice == "none":
            return cls()
        forced = None
        if choice == "required":
            forced = schemas
        elif isinstance(choice, NamedToolChoice):
            name = choice.function.name
            if name not in schemas:
                raise UserError(f'"tool_choice" names the function {name!r}, not of "tools"{suggest(name, schemas)}')
            forced = {name: schemas[name]}
        shown = tuple(tool.model_dump(exclude_none=True) for tool in tools)
        return cls(shown, tuple(forced or schemas), schemas, forced, parallel is not False)

    def opening(self, tokenizer: Tokenizer) -> list[int]:
        """Tokens behind the prompt with which a forced call has begun; none where the answer is free."""
        return [] if self.forced is None else tokenizer.encode(_form(tokenizer).opening, allow_special=True)

    def grammar(self, tokenizer: Tokenizer) -> Grammar | None:
        """What the answer must be behind the opening; None: anything."""
        if self.forced is None:
            return None
        return _structure(_calls(_form(tokenizer), self.forced, self.parallel))

    def or_format(self, schema: Any, tokenizer: Tokenizer) -> Grammar:
        """What the answer must be where it may call a function, and else must fit a schema."""
        form = _form(tokenizer)
        calls = _calls(form, self.schemas, self.parallel)
        return _structure(
            {
                "type": "or",
                "elements": [
                    {"type": "json_schema", "json_schema": schema},
                    {"type": "sequence", "elements": [*_spelled(form.opening, tokenizer), calls]},
                ],
            }
        )

    def parser(self, tokenizer: Tokenizer) -> ToolParser | None:
        """What takes the answer apart, the opening already taken in; None where there is nothing to call."""
        if not self.names:
            return None
        parser = ToolParser(self.names, parallel=self.parallel)
        if self.forced is not None:
            parser.push(_form(tokenizer).opening)
        return parser


def gather(parts: Sequence[str | CallDelta]) -> tuple[str | None, list[ToolCall]]:
    """The text and the calls of a whole answer, of all that a parser gave; no text is None where there are calls."""
    text = "".join(part for part in parts if isinstance(part, str))
    calls: list[ToolCall] = []
    for part in parts:
        if isinstance(part, str):
            continue
        if part.id is not None and part.name is not None:
            function = CalledFunction(name=part.name, arguments="")
            calls.append(ToolCall(id=part.id, type="function", function=function))
        calls[part.index].function.arguments += part.arguments
    return (None if calls and not text else text), calls


def _of_objects(function: FunctionDefinition) -> dict[str, Any]:
    """The schema of a function's arguments, which are always an object.

    Raises:
        UserError: it is of something else, or out of bounds.
    """
    schema = _NO_PARAMETERS if function.parameters is None else function.parameters
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise UserError(
            f'the parameters of the function {function.name!r} are of "type": {json.dumps(kind)}; arguments are always '
            'an object, so write "type": "object", with the arguments among its "properties".'
        )
    try:
        Grammar.model_validate({"json_schema": schema})
    except UserError as error:
        raise UserError(f"the parameters of the function {function.name!r} are out of bounds: {error}") from None
    return {**schema, "type": "object"}


def _form(tokenizer: Tokenizer) -> _Form:
    """How the model writes calls, which its chat template tells."""
    template = tokenizer.tool_template or ""
    return _LISTED if "<tool_calls>" in template else _TAGGED if "<tool_call>" in template else _MINIMAX


def _calls(form: _Form, schemas: dict[str, Any], parallel: bool) -> dict[str, Any]:
    """Calls of these functions, the opening left out, as a part of a structural tag of xgrammar."""
    tags = [
        {
            "type": "tag",
            "begin": form.begin % name,
            "content": {"type": "json_schema", "json_schema": schema},
            "end": form.end,
        }
        for name, schema in schemas.items()
    ]
    calls = {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": form.separator,
        "at_least_one": True,
        "stop_after_first": not parallel,
    }
    closing = [{"type": "const_string", "value": form.closing}] if form.closing else []
    return {"type": "sequence", "elements": [calls, *closing]}


def _spelled(text: str, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """A text, and the special tokens in it, as parts of a structural tag."""
    parts: list[dict[str, Any]] = []
    tokens = tokenizer.encode(text, allow_special=True)
    for special, group in groupby(tokens, tokenizer.is_special):
        if special:
            parts += [{"type": "token", "token": token} for token in group]
        else:
            parts.append({"type": "const_string", "value": tokenizer.decode(list(group))})
    return parts


def _structure(form: dict[str, Any]) -> Grammar:
    return Grammar(structure=json.dumps({"type": "structural_tag", "format": form}))
