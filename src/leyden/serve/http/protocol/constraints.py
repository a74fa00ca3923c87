"""Fields that constrain the text, in the spellings of vLLM and llama.cpp; each becomes a field of ``Grammar``."""

import json
from typing import Annotated, Any

from pydantic import Field, JsonValue

from leyden.core.errors import UserError
from leyden.serve.http.protocol.neutral import Neutral, Wire
from leyden.serve.sampling import Grammar
from leyden.serve.sampling.config import MAX_CHOICES

Schema = str | bool | dict[str, JsonValue]
Choices = Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]


class StructuredOutputs(Wire):
    """vLLM's table of constraints; one of them."""

    json_: Schema | None = Field(default=None, alias="json")
    """A JSON value that fits this schema."""
    json_object: bool | None = None
    """Any JSON object."""
    regex: str | None = None
    """A text that this regular expression matches as a whole."""
    choice: Choices | None = None
    """One of these texts."""
    grammar: str | None = None
    """A text of this grammar, in GBNF notation."""
    structural_tag: str | dict[str, JsonValue] | None = None
    """JSON schemas with given text around them, as xgrammar writes it."""
    disable_any_whitespace: Annotated[None, Neutral(False)] = None
    """White space in JSON is bounded anyway."""
    disable_fallback: Annotated[None, Neutral(True, False)] = None
    """There is one library."""


class Constrained(Wire):
    """Fields that say what the text must be; one of them at most."""

    structured_outputs: StructuredOutputs | None = None
    """What the text must be, as vLLM takes it."""
    guided_json: Schema | None = None
    """A JSON value that fits this schema; vLLM's older name."""
    guided_regex: str | None = None
    """A text that this regular expression matches as a whole; vLLM's older name."""
    guided_choice: Choices | None = None
    """One of these texts; vLLM's older name."""
    guided_grammar: str | None = None
    """A text of this grammar, in GBNF notation; vLLM's older name."""
    grammar: str | None = None
    """The same; llama.cpp's name."""

    def constraint(self) -> Grammar | None:
        """What the text must be; None: anything.

        Raises:
            UserError: several fields say it, or one is out of bounds.
        """
        table = self.structured_outputs or StructuredOutputs()
        given = {
            "guided_json": ("json_schema", self.guided_json),
            "guided_regex": ("regex", self.guided_regex),
            "guided_choice": ("choice", self.guided_choice),
            "guided_grammar": ("ebnf", self.guided_grammar),
            "grammar": ("ebnf", self.grammar or None),  # llama.cpp's clients send an empty one for none
            "structured_outputs.json": ("json_schema", table.json_),
            "structured_outputs.json_object": ("json_object", table.json_object or None),
            "structured_outputs.regex": ("regex", table.regex),
            "structured_outputs.choice": ("choice", table.choice),
            "structured_outputs.grammar": ("ebnf", table.grammar),
            "structured_outputs.structural_tag": ("structure", _as_text(table.structural_tag)),
        }
        fields = {name: kind for name, kind in given.items() if kind[1] is not None}
        if len(fields) > 1:
            raise UserError(f"{' and '.join(fields)} each say what the text must be; give one of them.")
        for name, (kind, value) in fields.items():
            try:
                return Grammar.model_validate({kind: value})
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
        return None


def _as_text(structure: Any) -> str | None:
    return json.dumps(structure) if isinstance(structure, dict) else structure
