"""The process in which grammars are compiled, so that one that takes too long or too much can be ended.

It speaks pickle on its standard input and output with the engine that started it: first the vocabulary, then one
grammar after the other. It is run as a file, and imports nothing of Leyden.
"""

import os
import pickle
import resource
import sys
import types
from collections.abc import Sequence
from typing import IO, Any

_BYTES = 2 << 30
"""Memory that a grammar may take while it is compiled."""


def main() -> None:
    """Compile what comes, until the input ends."""
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    tokens, ends = pickle.load(sys.stdin.buffer)
    # xgrammar imports transformers for classes that are not needed here; that would take seconds.
    placeholder: Any = types.ModuleType("transformers")
    placeholder.__getattr__ = _any_class
    sys.modules["transformers"] = placeholder
    import xgrammar

    def compiler_of(of_json: bool) -> Any:
        spelled = json_tokens(tokens) if of_json else tokens
        info = xgrammar.TokenizerInfo(spelled, xgrammar.VocabType.RAW, stop_token_ids=ends)
        return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    compilers = {of_json: compiler_of(of_json) for of_json in (False, True)}
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_AS, _address_space() + _BYTES)
    _answer(channel, "ready")
    while True:
        try:
            kind, text, seconds = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)
        try:
            answer = (True, compile_grammar(compilers[is_json(kind)], kind, text).serialize_json())
        except Exception as error:
            answer = (False, str(error))
        _answer(channel, answer)


def is_json(kind: str) -> bool:
    """Whether the texts of a grammar are JSON, and consist of :func:`json_tokens`."""
    return kind.startswith("json") or kind == "structure"


def json_tokens(tokens: Sequence[bytes]) -> list[bytes]:
    """``tokens`` without those that hold control characters, which JSON has between values alone, and needs not.

    xgrammar (0.2.8) lets strings of limited length hold them. Line feeds it keeps out, and they may stay.
    """
    return [b"" if any(byte < 32 and byte != 10 for byte in token) else token for token in tokens]


def compile_grammar(compiler: Any, kind: str, text: Any) -> Any:
    """By ``kind``: the name of the field of ``Grammar`` that was given."""
    if kind == "json_schema":
        # Space between values is allowed, as models write it, and bounded, since a small one may never stop.
        return compiler.compile_json_schema(text, any_whitespace=True, max_whitespace_cnt=32)
    if kind == "json_object":
        return compiler.compile_json_schema('{"type": "object"}', any_whitespace=True, max_whitespace_cnt=32)
    if kind == "regex":
        return compiler.compile_regex(text)
    if kind == "structure":
        return compiler.compile_structural_tag(text)
    return compiler.compile_grammar(text)


def _any_class(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def _answer(channel: IO[bytes], answer: Any) -> None:
    pickle.dump(answer, channel)
    channel.flush()


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _address_space() -> int:
    """Bytes of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as numbers:
            return int(numbers.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 40


if __name__ == "__main__":
    main()
