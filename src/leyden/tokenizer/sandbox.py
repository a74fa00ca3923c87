"""Sandboxed Jinja templates: those that came with a model are untrusted code.

They see nothing but what they are given (Jinja's immutable sandbox). The sandbox does not bound their time and memory:
:mod:`leyden.tokenizer.chat` runs all but Leyden's own template in a process that is ended when it takes too much. That
process loads this file alone, which therefore imports nothing of Leyden. What is wrong with a template is a ValueError.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MAX_CHARACTERS = 1 << 26  # a million-token prompt has about 2^22


def make() -> Callable[[str, Mapping[str, Any]], str]:
    """What a limited process runs: :func:`render`."""
    return render


def render(source: str, variables: Mapping[str, Any]) -> str:
    """The text that the template ``source`` makes of ``variables``.

    Raises:
        ValueError: it is not a Jinja template (with the line), it raised an error, reached outside the sandbox or wrote
            too much; in one sentence.
        MemoryError: it took more than there is.
    """
    template = _compiled(source)
    if isinstance(template, str):
        raise ValueError(template)
    pieces: list[str] = []
    num_characters = 0
    try:
        for piece in template.generate(**variables):
            num_characters += len(piece)
            if num_characters > _MAX_CHARACTERS:
                raise ValueError(f"it wrote more than {_MAX_CHARACTERS} characters")
            pieces.append(piece)
        return "".join(pieces)
    except MemoryError:
        raise
    except Exception as error:  # the template is foreign code: whatever it raises is about the template or its input
        words = str(error).strip() or type(error).__name__
        raise ValueError(f"The chat template refused these messages: {words.removesuffix('.')}.") from None


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template | str:
    """The template, or what is wrong with it."""
    try:
        return _Sandbox().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        return f"The chat template is not valid Jinja: line {error.lineno}: {error.message}."
    except RecursionError:
        return "The chat template is nested too deeply."
    except MemoryError:
        raise
    except Exception as error:  # Jinja makes Python, which may be none: it allows 20 loops inside one another
        return f"The chat template is not valid Jinja: {getattr(error, 'msg', error)}."


GENERATION_MARKS = ("leyden_generation_begins", "leyden_generation_ends")
"""Variables that, where they are given, are written before and after what stands in ``{% generation %}``."""


class _Generation(Extension):
    """``{% generation %}`` marks, for transformers, what the assistant wrote."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        before, after = (nodes.Output([nodes.Name(name, "load")], lineno=line) for name in GENERATION_MARKS)
        return [before, *parser.parse_statements(("name:endgeneration",), drop_needle=True), after]


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment in which chat templates run: transformers' dialect."""

    def __init__(self) -> None:
        # Not optimized: compiling would already run whatever is constant.
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], optimized=False)
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """transformers' ``tojson``: plain JSON, where Jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
