"""The child process that compiles grammars, so that a grammar that takes too long can be ended.

What it could compile, within the limits of time and memory, is compiled once more where it is followed: a compiled
grammar can be many times as large as its text, and takes longer to send than to make.
It is loaded as a file, and of Leyden it loads the files beside it alone: the packages above would load the engine.
"""

import importlib.util
import json
import os
import re
import sys
import tempfile
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_STACK_BYTES = 4 << 20
"""Half of what a thread of the engine has: what is nested too deep ends this process, and not that one."""
_PLACE = re.compile(r"^\[[0-9:.]+\] \S+?:[0-9]+: ", re.MULTILINE)
_CHECK = re.compile(r"Check failed: \(.*?\) is (?:false|true): ")


def make(vocabularies: list[list[bytes]], ends: list[int], max_bytes: int) -> Callable[[str, Any], tuple[bool, str]]:
    """What tries to compile grammars.

    Args:
        vocabularies: what each token stands for, in texts and in structures, see :func:`of_structure`.
        ends: the tokens that end a text.
        max_bytes: of a compiled grammar.

    Returns:
        A function of a field of ``Grammar``, by its name, and its value. It returns whether the grammar could be
        compiled, and the text that :func:`compiled` compiles in no more time and memory; or what is wrong with it.
    """
    schemas = _beside("json_schema")
    # xgrammar imports transformers for classes that are not needed here; that would take seconds.
    placeholder: Any = types.ModuleType("transformers")
    placeholder.__getattr__ = _any_class
    sys.modules["transformers"] = placeholder
    compilers = [compiler_of(tokens, ends) for tokens in vocabularies]
    threading.stack_size(_STACK_BYTES)
    thread = ThreadPoolExecutor(1)

    def attempt(kind: str, value: Any) -> tuple[bool, str]:
        try:
            text = _written(schemas, kind, value)
            size, warning = _warned(lambda: compiled(compilers[of_structure(kind)], kind, text).memory_size_bytes)
        except (schemas.SchemaError, schemas.PatternError) as error:
            return False, str(error)
        except RuntimeError as error:
            if "bad_alloc" in str(error):
                raise MemoryError from None
            return False, _reason(str(error))
        if warning:
            return False, f"it cannot be enforced in full: {_reason(warning)}"
        if size > max_bytes:
            return False, f"it has {size} bytes when it is compiled, more than {max_bytes}; make it simpler"
        return True, text

    return lambda kind, value: thread.submit(attempt, kind, value).result()


def compiler_of(tokens: list[bytes], ends: list[int]) -> Any:
    """xgrammar's compiler for a vocabulary."""
    import xgrammar

    info = xgrammar.TokenizerInfo(tokens, xgrammar.VocabType.RAW, stop_token_ids=ends)
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def compiled(compiler: Any, kind: str, text: str) -> Any:
    """The grammar of ``text``, which belongs to a field of this name; a structural tag, or EBNF."""
    return compiler.compile_structural_tag(text) if of_structure(kind) else compiler.compile_grammar(text)


def of_structure(kind: str) -> bool:
    """Whether a grammar may name special tokens; xgrammar (0.2.8) wants them to stand for something, then."""
    return kind == "structure"


def _written(schemas: Any, kind: str, value: Any) -> str:
    """What the library compiles: EBNF, or a structural tag."""
    if kind == "json_schema":
        return schemas.schema_grammar(json.loads(value))
    if kind == "json_object":
        return schemas.schema_grammar({"type": "object"})
    if kind == "regex":
        return schemas.pattern_grammar(value)
    if kind == "choice":
        return "root ::= " + " | ".join(map(schemas.literal, value))
    if kind == "structure":
        try:
            structure = json.loads(value)
        except ValueError as error:
            raise schemas.SchemaError(f"it is no JSON: {error}") from None
        return json.dumps(_with_grammars(schemas, structure, ""))
    return value


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


def _warned(call: Callable[[], int]) -> tuple[int, str]:
    """What ``call`` gives, and what it writes to standard error: the library warns there of what it passes over."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            result = call()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return result, file.read(4096).decode(errors="replace").strip()


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
