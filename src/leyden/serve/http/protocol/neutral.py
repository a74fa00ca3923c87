"""Fields whose value may ask for nothing: clients send them unasked, with what they have as the default.

A field of which this server has nothing is as good as left out with such a value, and refused with any other. So are
the fields of other servers (vLLM, llama.cpp) that say what is done here anyway.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function


class Wire(BaseModel):
    """A part of a request: types are not converted, unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Neutral:
    """In the annotation of a field that is null: the values that mean null, too.

    Args:
        values: as they come in JSON.
    """

    def __init__(self, *values: Any) -> None:
        self._values = values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Null, of which these are other spellings."""
        return no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Any of them."""
        return {"enum": [*self._values, None]}

    def _read(self, given: Any) -> Any:
        return None if any(_same(given, value) for value in self._values) else given


def _same(given: Any, value: Any) -> bool:
    """Whether two JSON values are equal; a number may have a point or not, and is no truth."""
    return given == value and isinstance(given, bool) == isinstance(value, bool)


NotSupported = Annotated[None, Neutral()]


class OtherServers(Wire):
    """Fields of vLLM and llama.cpp, with the values that say what is done here."""

    skip_special_tokens: Annotated[None, Neutral(True)] = None
    """Special tokens are no text."""
    spaces_between_special_tokens: Annotated[None, Neutral(True, False)] = None
    """Special tokens are no text."""
    include_stop_str_in_output: Annotated[None, Neutral(False)] = None
    """A text ends before what stops it."""
    use_beam_search: Annotated[None, Neutral(False)] = None
    """Tokens are drawn."""
    length_penalty: Annotated[None, Neutral(1)] = None
    """There are no beams."""
    early_stopping: Annotated[None, Neutral(False)] = None
    """There are no beams."""
    truncate_prompt_tokens: Annotated[None, Neutral()] = None
    """A prompt that is too long is refused."""
    allowed_token_ids: Annotated[None, Neutral([])] = None
    """Every token may be drawn."""
    bad_words: Annotated[None, Neutral([])] = None
    """Every token may be drawn."""
    logits_processors: Annotated[None, Neutral([])] = None
    """No code of clients is run."""
    priority: Annotated[None, Neutral(0)] = None
    """Requests are admitted in order of arrival."""
    return_tokens_as_token_ids: Annotated[None, Neutral(False)] = None
    """Tokens are told by their text."""
    return_token_ids: Annotated[None, Neutral(False)] = None
    """Tokens are told by their text."""
    include_reasoning: Annotated[None, Neutral(True, False)] = None
    """Answers have no part that is told apart."""
    cache_prompt: Annotated[None, Neutral(True)] = None
    """Every prompt is looked up in the cache."""
    typical_p: Annotated[None, Neutral(1)] = None
    """There is no such filter."""
    tfs_z: Annotated[None, Neutral(1)] = None
    """There is no such filter."""
    top_a: Annotated[None, Neutral(0)] = None
    """There is no such filter."""
    mirostat: Annotated[None, Neutral(0)] = None
    """There is no such filter."""
    dry_multiplier: Annotated[None, Neutral(0)] = None
    """There is no such penalty."""
    xtc_probability: Annotated[None, Neutral(0)] = None
    """There is no such filter."""
