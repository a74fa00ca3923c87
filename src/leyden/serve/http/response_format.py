"""``response_format`` of a chat request: which texts the answer may be."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from leyden.core.errors import UserError
from leyden.serve.http.chat_messages import Name
from leyden.serve.http.protocol.common import Wire
from leyden.serve.http.tools import ToolUse
from leyden.serve.sampling import Grammar
from leyden.tokenizer import Tokenizer


class TextFormat(Wire):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Wire):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Wire):
    """A schema with a name. Answers keep to it whether or not it says ``strict``."""

    name: Name
    description: str | None = None
    schema_: dict[str, JsonValue] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Wire):
    """A JSON value that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def answer_grammar(
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None,
    constraint: Grammar | None,
    tools: ToolUse,
    tokenizer: Tokenizer,
) -> Grammar | None:
    """What an answer must be, of a request's format, other constraint and tools; None: anything.

    The format is that of an answer without calls: one that may call a function fits it or calls, one that must, calls.

    Raises:
        UserError: a schema out of bounds; another constraint beside a format or functions that may be called.
    """
    plain = response_format is None or isinstance(response_format, TextFormat)
    if constraint is not None:
        if tools.names or not plain:
            beside = '"tools"' if tools.names else '"response_format"'
            raise UserError(f"{beside} and a grammar of its own want two things of one answer; leave one of them out.")
        return constraint
    if response_format is None or isinstance(response_format, TextFormat) or tools.forced is not None:
        return tools.grammar(tokenizer)
    is_object = isinstance(response_format, JsonObjectFormat)
    schema = {"type": "object"} if is_object else response_format.json_schema.schema_
    try:
        grammar = Grammar(json_object=True) if is_object else Grammar.model_validate({"json_schema": schema})
    except UserError as error:
        raise UserError(f"response_format: {error}") from None
    return tools.or_format(schema, tokenizer) if tools.names else grammar
