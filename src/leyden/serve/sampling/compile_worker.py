"""What compiles grammars, in a process of its own that can be ended (:class:`leyden.core.limited.LimitedProcess`).

It is loaded as a file, and of Leyden it loads the files beside it alone: the packages above would load the engine.
"""

import importlib.util
import json
import os
import re
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PLACE = re.compile(r"^\[[0-9:.]+\] \S+?:[0-9]+: ", re.MULTILINE)
_CHECK = re.compile(r"Check failed: \(.*?\) is (?:false|true): ")


def make(vocabularies: list[list[bytes]], ends: list[int]) -> Callable[[str, Any], tuple[bool, str]]:
    """What compiles one grammar after the other.

    Args:
        vocabularies: what each token stands for, in texts and in structures, see :func:`of_structure`.
        ends: the tokens that end a text.

    Returns:
        A function of a field of ``Grammar``, by its name, and its value. It returns whether the grammar could be
        compiled, and the compiled grammar as JSON, or what is wrong with it.
    """
    schemas = _beside("json_schema")
    # xgrammar imports transformers for classes that are not needed here; that would take seconds.
    placeholder: Any = types.ModuleType("transformers")
    placeholder.__getattr__ = _any_class
    sys.modules["transformers"] = placeholder
    import xgrammar

    infos = [xgrammar.TokenizerInfo(each, xgrammar.VocabType.RAW, stop_token_ids=ends) for each in vocabularies]
    compilers = [xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False) for info in infos]

    def compile_grammar(kind: str, value: Any) -> tuple[bool, str]:
        try:
            ask = _asked(schemas, compilers[of_structure(kind)], kind, value)
            compiled, warning = _warned(ask)
        except (schemas.SchemaError, schemas.PatternError) as error:
            return False, str(error)
        except RuntimeError as error:
            if "bad_alloc" in str(error):
                raise MemoryError from None
            return False, _reason(str(error))
        return (False, f"it cannot be enforced in full: {_reason(warning)}") if warning else (True, compiled)

    return compile_grammar


def of_structure(kind: str) -> bool:
    """Whether a grammar may name special tokens; xgrammar (0.2.8) wants them to stand for something, then."""
    return kind == "structure"


def _asked(schemas: Any, compiler: Any, kind: str, value: Any) -> Callable[[], Any]:
    """The call of the library that compiles it."""
    if kind == "json_schema":
        schema = json.loads(value)
        return lambda: compiler.compile_grammar(schemas.schema_grammar(schema))
    if kind == "json_object":
        return lambda: compiler.compile_grammar(schemas.schema_grammar({"type": "object"}))
    if kind == "regex":
        return lambda: compiler.compile_grammar(schemas.pattern_grammar(value))
    if kind == "choice":
        return lambda: compiler.compile_grammar("root ::= " + " | ".join(map(schemas.literal, value)))
    if kind == "structure":
        try:
            structure = json.loads(value)
        except ValueError as error:
            raise schemas.SchemaError(f"it is no JSON: {error}") from None
        return lambda: compiler.compile_structural_tag(json.dumps(_with_grammars(schemas, structure, "")))
    return lambda: compiler.compile_grammar(value)


def _with_grammars(schemas: Any, part: Any, begin: str) -> Any:
    """A structural tag with a grammar in the place of each JSON schema, which xgrammar would not keep in full."""
    if isinstance(part, list):
        return [_with_grammars(schemas, inner, begin) for inner in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "json_schema" and "json_schema" in part:
        try:
            return {"type": "grammar", "grammar": schemas.schema_grammar(part["json_schema"])}
        except schemas.SchemaError as error:
            raise schemas.SchemaError(f"in the JSON behind {begin!r}, {error}" if begin else str(error)) from None
    begin = part["begin"] if isinstance(part.get("begin"), str) else begin
    return {key: _with_grammars(schemas, inner, begin) for key, inner in part.items()}


def _warned(call: Callable[[], Any]) -> tuple[str, str]:
    """What ``call`` compiles, as JSON, and what it writes to standard error: it warns there of what it passes over."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            compiled = call().serialize_json()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return compiled, file.read(4096).decode(errors="replace").strip()


def _reason(text: str) -> str:
    """What xgrammar says, without where in its source it says so."""
    said = _CHECK.sub("", _PLACE.sub("", text)).strip().splitlines()
    return said[0] if said else "it is no grammar"


def _beside(name: str) -> Any:
    """The package ``name`` in this file's folder."""
    folder = Path(__file__).with_name(name)
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _any_class(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
