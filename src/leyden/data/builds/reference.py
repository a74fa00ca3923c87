"""Every key of a data recipe, as tables: for ``leyden data stages``, and for ``docs/data-stages.md``.

All of it is read from the classes that check recipes: types, defaults and bounds from their fields, the meaning from
the docstring below each field. So it cannot say anything else than the code does.
"""

import ast
import functools
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from leyden.core.config import Config
from leyden.core.errors import UserError, suggest
from leyden.data.builds.recipe import BuildSection, TokensSection
from leyden.data.builds.stages import KINDS, stage_class
from leyden.data.readers import SourceSettings
from leyden.data.tokenise import TextLayout

_NO_END = 1 << 60
"""Numbers from here on stand for no limit."""
_PLAIN = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "at least", "pattern": "like"}


@dataclass(frozen=True)
class Key:
    """One key of a table of a recipe.

    Attributes:
        name: of the key.
        kind: what values it takes, and within which bounds.
        default: as TOML; ``required``, or ``none`` where leaving the key out is the default.
        meaning: its docstring.
    """

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class ReferenceTable:
    """The keys of one table of a recipe.

    Attributes:
        title: how the table is written: ``[[source]]``, or ``[[stage]] kind = "exact"``.
        about: what it is for; paragraphs.
        keys: in the order of the code.
    """

    title: str
    about: str
    keys: tuple[Key, ...]


def sections() -> Iterator[ReferenceTable]:
    """The tables of a recipe but for its stages."""
    for title, config in (("[build]", BuildSection), ("[[source]]", SourceSettings), ("[tokens]", TokensSection)):
        yield _table(title, config)
    yield _table("[tokens.layout]", TextLayout)


def stage_tables(kind: str) -> list[ReferenceTable]:
    """The table of a kind of stage, and those within it.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"There is no kind of stage '{kind}'{suggest(kind, KINDS)}")
    found = stage_class(kind)
    inner = {name: config for name, field in found.model_fields.items() for config in _configs_in(field.annotation)}
    tables = [_table(f"[[stage]] kind = {json.dumps(kind)}", found)]
    return tables + [_table(f"[stage.{name}] of {kind}", config) for name, config in inner.items()]


def summaries() -> dict[str, str]:
    """What each kind of stage does, in one paragraph's first sentence."""
    return {kind: _sentence(stage_tables(kind)[0].about) for kind in KINDS}


def page() -> str:
    """``docs/data-stages.md``."""
    kinds = "\n".join(f"| [`{kind}`](#{kind}) | {_cell(about)} |" for kind, about in summaries().items())
    parts = [_PAGE.format(kinds=kinds), *(_markdown(f"### `{table.title}`", table) for table in sections())]
    parts.append("## Stages\n\nIn the order of the table above; they run in the order of the recipe.")
    for kind in KINDS:
        first, *inner = stage_tables(kind)
        parts.append(_markdown(f"### {kind}", first))
        parts += [_markdown(f"#### `{table.title}`", table) for table in inner]
    return "\n\n".join(parts) + "\n"


_PAGE = """# Every key of a data recipe

Made by `leyden data stages --markdown` from the code; a test holds this page to it. `leyden data stages KIND` prints
one table. A key that is not here is an error that names the near one. "required" has no default; "none" is written by
leaving the key out, since TOML has no null. How the tables work together is in [data.md](data.md).

| kind of stage | what it does |
|---|---|
{kinds}

## The other tables"""


def _markdown(heading: str, table: ReferenceTable) -> str:
    rows = [f"| `{key.name}` | {_cell(key.kind)} | {_cell(key.default)} | {_cell(key.meaning)} |" for key in table.keys]
    return "\n".join([heading, "", table.about, "", "| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


@functools.cache
def _table(title: str, config: type[Config]) -> ReferenceTable:
    meanings = _meanings(config)
    keys = [
        Key(name, _kind(field), _default(field), meanings.get(name, ""))
        for name, field in config.model_fields.items()
        if name != "kind"
    ]
    return ReferenceTable(title, _prose(inspect.getdoc(config) or "", paragraphs=True), tuple(keys))


def _meanings(config: type[Config]) -> dict[str, str]:
    """The docstring below each field, of the class and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed([base for base in config.__mro__ if issubclass(base, Config) and base is not Config]):
        [made] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = made.body if isinstance(made, ast.ClassDef) else []
        for field, text in zip(body, body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = _prose(words)
    return found


def _prose(text: str, *, paragraphs: bool = False) -> str:
    """A docstring as Markdown: roles and double backquotes become code."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda match: f"`{match[1].rpartition('.')[2]}`", text).replace("``", "`")
    parts = re.split(r"\n\s*\n", text.strip())
    return ("\n\n" if paragraphs else " ").join(" ".join(part.split()) for part in parts)


def _sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", text.partition("\n")[0])[0]


def _kind(field: FieldInfo) -> str:
    """What values a field takes, with its bounds."""
    kind, values = _type(field.annotation), []
    for rule in field.metadata:
        for name, words in _BOUNDS.items():
            bound = getattr(rule, name, None)
            if bound is not None and bound < _NO_END if isinstance(bound, int | float) else bound:
                what = {"text": " character", "list": " item"}[kind[:4]] if name == "min_length" else ""
                values.append(f"{words} {f'`{bound}`' if isinstance(bound, str) else bound}{what}")
    return ", ".join([kind, *values])


def _type(annotation: Any) -> str:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(one) for one in arguments if one is not type(None))
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"table of {_type(arguments[1])} by {_type(arguments[0])}"
    return "table" if _configs_in(annotation) else str(annotation)


def _configs_in(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [config for argument in typing.get_args(annotation) for config in _configs_in(argument)]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, Config):
        return "as below"
    return "no limit" if isinstance(value, int) and value >= _NO_END else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    """A value on one line of TOML."""
    if isinstance(value, Config):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {_toml(item)}' for name, item in value.items())} }}" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
