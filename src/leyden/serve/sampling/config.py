"""The sampling parameters of a completion: how tokens are drawn, what the text must fit, when it ends."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Self, TypeVar

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator

from leyden.core.config import Config, explain
from leyden.core.errors import UserError

MAX_TOP = 20
"""Most probable tokens that can be asked for in each place; OpenAI's limit."""
MAX_GRAMMAR_CHARACTERS = 65_536
"""Of a schema, a regular expression, an EBNF grammar, or all texts of a choice together."""
MAX_SCHEMA_DEPTH = 32
"""Lists and tables inside each other in a schema."""
MAX_CHOICES = 1024
MAX_STOPS = 64
"""Stop strings, each looked for with every token."""
MAX_STOP_CHARACTERS = 1024
MAX_NAMED_TOKENS = 4096
"""In ``logit_bias``, and in ``stop_token_ids``; OpenAI takes 300."""

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Token = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]

C = TypeVar("C", bound=Config)


class Grammar(Config):
    """What the text must be. Exactly one field is given; ``json_schema`` may be given as a mapping, too.

    Raises:
        UserError: none or several, or one that is too large; the message names the field.
    """

    model_config = ConfigDict(strict=True)

    json_schema: str | None = None
    """A JSON value that fits this schema (JSON text). What a grammar cannot keep of a schema is refused by name."""
    json_object: bool | None = None
    """Any JSON object, where true."""
    regex: str | None = None
    """A text that this regular expression, of ECMA-262, matches as a whole."""
    ebnf: str | None = None
    """A text of this grammar, in GBNF notation, whose first rule is ``root``."""
    choice: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=MAX_CHOICES)] | None = None
    """One of these texts."""
    structure: str | None = None
    """JSON schemas with given text around them: a structural tag of xgrammar (JSON text)."""

    @field_validator("json_schema", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, str) and len(value) > MAX_GRAMMAR_CHARACTERS:
            return value  # refused below
        try:
            schema = json.loads(value) if isinstance(value, str) else value
            text = value if isinstance(value, str) else json.dumps(value)
        except (ValueError, TypeError):
            raise ValueError("give a schema as JSON") from None
        except RecursionError:
            raise ValueError(_too_deep()) from None
        if value is not None and not isinstance(schema, dict | bool):
            raise ValueError("a schema is a table (or true or false)")
        if _deeper_than(schema, MAX_SCHEMA_DEPTH):
            raise ValueError(_too_deep())
        return None if value is None else text

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            fields = ", ".join(f"'{name}'" for name in type(self).model_fields)
            raise ValueError(f"give exactly one of {fields}; given {' and '.join(map(repr, given)) or 'none'}")
        if self.json_object is False:
            raise ValueError("'json_object' can only be true; leave the grammar out for any text")
        for text in (self.json_schema, self.regex, self.ebnf, self.structure, "".join(self.choice or ())):
            if text is not None and len(text) > MAX_GRAMMAR_CHARACTERS:
                raise ValueError(
                    f"'{given[0]}' has {len(text)} characters; at most {MAX_GRAMMAR_CHARACTERS} are allowed"
                )
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _user_error(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return _validated("grammar", cls, data, handler)


def _too_deep() -> str:
    return f"tables and lists lie deeper inside each other than {MAX_SCHEMA_DEPTH} levels; make the schema flatter"


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether tables and lists lie more than ``depth`` levels inside each other."""
    level = [value]
    for _ in range(depth + 1):
        level = [inner for outer in level for inner in _inside(outer)]
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()


class Sampling(Config):
    """What to draw, and when to stop.

    The model's logits are changed in this order: what the grammar forbids and, before ``min_tokens``, what would end
    the text are taken out; the repetition penalty; presence and frequency penalties and ``logit_bias``; temperature;
    ``top_k``, then ``top_p``, then ``min_p`` and ``top_n_sigma``. A filter keeps tokens of equal probability together:
    where several are as probable as the last one kept, all of them are.

    Raises:
        UserError: a value that is not allowed, or of another type; the message names the field.
    """

    model_config = ConfigDict(strict=True)

    max_tokens: int = Field(default=256, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    """Until so many are drawn, no token that ends the text is."""
    n: int = Field(default=1, ge=1, le=128)
    """Completions of one prompt; each draws from random numbers of its own."""
    temperature: float = Field(default=1.0, ge=0)
    """Logits are divided by it; 0 (and less than 0.00001) takes the most probable token."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw among the k most probable tokens. None: among all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the fewest tokens whose probabilities add up to p (after ``top_k``)."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Draw among tokens at least this fraction as probable as the most probable one."""
    top_n_sigma: float | None = Field(default=None, gt=0)
    """Draw among tokens whose logit is at most so many standard deviations of all logits below the largest
    (arXiv 2411.07641); unlike the other filters, it keeps the same tokens at every temperature. None: among all."""
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    """Divides the positive logits of tokens that the prompt or the output holds, and multiplies the negative ones (as
    in CTRL, Keskar et al. 2019, section 4.1); above 1 for less repetition."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Subtracted from the logits of tokens that the output holds."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Subtracted from the logit of a token as often as the output holds it."""
    logit_bias: dict[Annotated[Token, Field(strict=False)], Bias] = Field(
        default_factory=dict, max_length=MAX_NAMED_TOKENS
    )
    """Added to the logits of these tokens, by their ids (digits, where the format has but texts for keys)."""
    seed: Seed | None = None
    """The same seed and prompt give the same tokens, whatever else is asked for. None: drawn from the system."""
    stop: Annotated[tuple[str, ...], Field(strict=False, max_length=MAX_STOPS)] = ()
    """The text ends before the first of these that appears."""
    stop_token_ids: Annotated[tuple[Token, ...], Field(strict=False, max_length=MAX_NAMED_TOKENS)] = ()
    """The text ends before the first of these tokens."""
    ignore_eos: bool = False
    """Go on after the tokens that end a turn or a document."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    """Report the log-probability of each drawn token, and so many of the most probable ones in its place."""
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    """The same for the tokens of the prompt."""
    grammar: Grammar | None = None
    """What the text must be; None: anything."""

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty stop string would end every text at once; leave it out")
        if max(map(len, value), default=0) > MAX_STOP_CHARACTERS:
            raise ValueError(f"a stop string can have {MAX_STOP_CHARACTERS} characters at most")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"'min_tokens' ({self.min_tokens}) is more than 'max_tokens' ({self.max_tokens})")
        if self.grammar is not None and (self.min_tokens or self.ignore_eos):
            field = "min_tokens" if self.min_tokens else "ignore_eos"
            raise ValueError(f"'{field}' contradicts 'grammar', which says where the text ends; leave one of them out")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _user_error(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return _validated("sampling", cls, data, handler)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken, without chance."""
        return self.temperature < 1e-5 or self.top_k == 1

    def check_tokens(self, vocab_size: int) -> None:
        """Refuse ids of tokens that a model does not have.

        Raises:
            UserError: which field names which token.
        """
        for name, tokens in (("logit_bias", self.logit_bias), ("stop_token_ids", self.stop_token_ids)):
            wrong = next((token for token in tokens if token >= vocab_size), None)
            if wrong is not None:
                raise UserError(f"sampling: '{name}' names token {wrong}; the model's ids lie in 0..{vocab_size - 1}.")


def _validated(name: str, cls: type[C], data: Any, handler: ModelWrapValidatorHandler[C]) -> C:
    """What ``handler`` makes of ``data``; what it finds wrong is the user's error, with ``name`` before it."""
    try:
        return handler(data)
    except ValidationError as error:
        raise UserError(f"{name}: {explain(cls, data, error)}") from None
    except UserError as error:  # a part's
        raise UserError(f"{name}: {error}") from None
