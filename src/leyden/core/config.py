"""Typed configuration: frozen pydantic models, TOML files, and errors that name the field and the near name."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from leyden.core.errors import UserError, suggest


class Config(BaseModel):
    """Base of every configuration in Leyden: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def parse(cls, data: Mapping[str, Any], source: str) -> Self:
        """Validate ``data``; ``source`` (a path, say) opens the message of the error.

        Raises:
            UserError: an unknown key (with the near name), a wrong type, or a value out of range.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise UserError(f"{source}: {explain(cls, data, error)}") from None


def explain(cls: type[Config], data: Mapping[str, Any], error: ValidationError) -> str:
    """One clause per problem, each naming the field, what it was given and what is allowed."""
    clauses, found = [], error.errors()
    for item in found:
        location = item["loc"]
        path = ".".join(str(part) for part in location)
        if item["type"] == "extra_forbidden":
            fields = _fields_at(cls, location[:-1])
            clauses.append(f"unknown key '{path}'{suggest(str(location[-1]), fields)}")
        elif item["type"] == "missing":
            clauses.append(f"'{path}' is required{_choices(cls, location)}")
        elif item["type"] == "too_short" and any(o["loc"][: len(location)] == location != o["loc"] for o in found):
            continue  # pydantic counts the items that are sound, and the others have clauses of their own
        else:
            given = "" if _holds_tables(item["input"]) or not path else f" (given: {_shown(item['input'])})"
            clauses.append(f"'{path}': {_message(item)}{given}" if path else _message(item))
    text = "; ".join(clauses)
    return text if text.endswith("?") else f"{text}."


def _choices(cls: type[BaseModel], location: tuple[Any, ...]) -> str:
    """``; allowed: ...`` where the missing field takes one of a few texts, else nothing."""
    field = _model_at(cls, location[:-1]).model_fields.get(str(location[-1]))
    texts = (
        [text for t in _types_in(field.annotation) if get_origin(t) is Literal for text in get_args(t)] if field else []
    )
    return f"; allowed: {', '.join(sorted(map(str, texts)))}" if texts else ""


def _message(item: ErrorDetails) -> str:
    """What pydantic says, without the words that are about pydantic."""
    if item["type"] == "too_short":
        least = item.get("ctx", {})["min_length"]
        return f"must have at least {least} item{'s'[: least != 1]}"
    return item["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)


def _holds_tables(value: Any) -> bool:
    """Whether a value is a table or a list of tables; these are too long to be shown, and the message says where."""
    tables = Mapping | BaseModel
    return isinstance(value, tables) or (isinstance(value, list | tuple) and any(isinstance(v, tables) for v in value))


def _shown(value: Any) -> str:
    """``value`` as Python writes it, cut short: it may be a stranger's."""
    try:
        text = repr(value)
    except RecursionError:
        return "something very deep"
    return text if len(text) <= 300 else f"{text[:300]}..."


def _fields_at(cls: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """The field names of the model found by walking ``location`` from ``cls``."""
    return list(_model_at(cls, location).model_fields)


def _model_at(cls: type[BaseModel], location: Iterable[Any]) -> type[BaseModel]:
    """The model found by walking ``location`` from ``cls``."""
    current: type[BaseModel] = cls
    for part in location:
        field = current.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            continue
        models = [t for t in _types_in(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]
        if models:
            current = models[0]
    return current


def _types_in(annotation: Any) -> list[Any]:
    """``annotation`` and every type written inside it (``list[Stage] | None`` holds ``Stage``)."""
    inner = [t for argument in getattr(annotation, "__args__", ()) for t in _types_in(argument)]
    return [annotation, *inner]


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: it does not exist, is not UTF-8, or is not TOML (with the line).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of a TOML file.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} is not a TOML file: {error}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def dump_toml(data: Mapping[str, Any]) -> str:
    """``data`` as TOML text; keys whose value is None are left out, since TOML has no null."""
    import tomli_w  # here alone, so that models need no package but torch and pydantic

    return tomli_w.dumps(_without_none(data))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def override(data: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Apply ``path=value`` settings to a copy of ``data``; ``stage.0.lr=1e-3`` reaches into lists.

    The value is read as TOML (``3``, ``1e-3``, ``true``, ``[1, 2]``, ``"text"``) and, where that fails, as text.

    Raises:
        UserError: a setting without ``=``, or a path through something that is not a table or list.
    """
    result = _copy(data)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise UserError(f"--set {setting}: expected path=value, for example --set train.seed=1.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        _assign(result, path, value)
    return result


def _assign(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node: Any = tree
    for part in parents:
        node = _child(node, part, path)
    if isinstance(node, list):
        node[_index(node, last, path)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"--set {path}: '{last}' lies inside a plain value; name a key of a table.")


def _child(node: Any, part: str, path: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, path)]
    if isinstance(node, dict):
        return node.setdefault(part, {})
    raise UserError(f"--set {path}: '{part}' lies inside a plain value; name a key of a table.")


def _index(items: list[Any], part: str, path: str) -> int:
    """The position ``part`` names: a number, or the ``name`` of the table at that place."""
    for position, item in enumerate(items):
        if isinstance(item, dict) and item.get("name") == part:
            return position
    if part.isdigit() and int(part) < len(items):
        return int(part)
    names = [item["name"] for item in items if isinstance(item, dict) and "name" in item]
    raise UserError(f"--set {path}: no item '{part}' among {len(items)}{suggest(part, names)}.")


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value
