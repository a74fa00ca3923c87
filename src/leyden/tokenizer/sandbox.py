"""Jinja templates that came with a model, run as what they are: somebody else's code.

They see nothing but what they are given (Jinja's immutable sandbox), must finish within a time, and may neither
repeat a string nor write text without bound. What stays unbounded is memory taken by chains of filters such as
``replace``; limit the process where templates of strangers are rendered for others.
"""

import json
import time
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from leyden.core.errors import UserError

_MAX_SECONDS = 10.0
_MAX_CHARACTERS = 1 << 27  # a million-token prompt has about 2^22
_MAX_POWER_BITS = 4096

_deadline: ContextVar[float] = ContextVar("_deadline")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment in which chat templates run: transformers' dialect, with bounds."""

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        extensions = [_Generation, loopcontrols]
        # Not optimized: compiling would already run whatever is constant.
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False)
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply or raise to a power, unless the result would be huge."""
        if operator == "*":
            for items, count in ((left, right), (right, left)):
                if isinstance(items, str | list | tuple) and len(items) * count > _MAX_CHARACTERS:
                    raise SecurityError(f"a sequence of {len(items)} is repeated {count} times")
        elif isinstance(left, int) and left.bit_length() * right > _MAX_POWER_BITS:
            raise SecurityError(f"a power of more than {_MAX_POWER_BITS} bits")
        return super().call_binop(context, operator, left, right)

    def tick(self) -> None:
        """Called by every pass of a loop and every call of a macro."""
        if time.monotonic() > _deadline.get():
            raise SecurityError(f"it ran longer than {_MAX_SECONDS:.0f} seconds")

    def compile_bounded(self, source: str) -> jinja2.Template:
        """Compile ``source`` with a call of :meth:`tick` at the head of every loop and macro.

        Raises:
            UserError: it is not a Jinja template (with the line).
        """
        try:
            tree = self.parse(source)
            for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
                tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
                node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
            tree.set_environment(self)
            return self.from_string(tree)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"The chat template is not valid Jinja: line {error.lineno}: {error.message}.") from None
        except RecursionError:
            raise UserError("The chat template is nested too deeply.") from None


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """The text that ``template`` makes of ``variables``.

    Raises:
        UserError: the template raised an error, reached outside the sandbox, took too long or wrote too much.
    """
    token = _deadline.set(time.monotonic() + _MAX_SECONDS)
    pieces: list[str] = []
    num_characters = 0
    try:
        for piece in template.generate(**variables):
            num_characters += len(piece)
            if num_characters > _MAX_CHARACTERS:
                raise SecurityError(f"it wrote more than {_MAX_CHARACTERS} characters")
            pieces.append(piece)
    except Exception as error:  # the template is foreign code: whatever it raises is about the template or its input
        raise UserError(f"The chat template refused these messages: {error or type(error).__name__}.") from None
    finally:
        _deadline.reset(token)
    return "".join(pieces)


class _Generation(Extension):
    """``{% generation %}`` marks, for transformers, what the assistant wrote; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """transformers' ``tojson``: plain JSON, where Jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
