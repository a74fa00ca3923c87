"""Texts that must fit a grammar: compiled by xgrammar, once for each grammar, and followed token by token.

xgrammar: Dong et al. 2024, arXiv:2411.15100. It is imported with the first grammar.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
import torch

from leyden.core.errors import UserError
from leyden.core.limited import LimitedProcess, LimitReached
from leyden.core.transfers import send
from leyden.serve.sampling.compile_worker import compiled, compiler_of, of_structure
from leyden.serve.sampling.config import Grammar
from leyden.tokenizer import Tokenizer

if TYPE_CHECKING:
    import xgrammar

_SECONDS = 5
"""Of the processor's time, for one grammar."""
_MEMORY_BYTES = 2 << 30
"""Of a grammar, while it is compiled."""
_FIRST_SECONDS = 0.25
_SECONDS_PER_TOKEN = 0.005
"""Of the processor's time, to follow a grammar: so much for the text, and twice so much for each of its tokens."""
_MAX_BYTES = 32 << 20
"""Of a compiled grammar."""
_MAX_KEPT = 128
_MAX_KEPT_BYTES = 256 << 20
"""Grammars that are kept, with the errors of those that could not be compiled."""


class Grammars:
    """Compiles grammars for one vocabulary. May be used by several threads; they wait for each other.

    Args:
        tokenizer: whose tokens the texts consist of.
        vocab_size: of the model's logits, which may be more than the tokenizer's.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ends = sorted(tokenizer.end_ids)
        self._kept: OrderedDict[Grammar, CompiledGrammar | str] = OrderedDict()
        self._used: WeakValueDictionary[Grammar, CompiledGrammar] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._compilers: dict[bool, xgrammar.GrammarCompiler] = {}
        self._worker: LimitedProcess | None = None

    def known(self, grammar: Grammar) -> bool:
        """Whether :meth:`compile` takes no time."""
        return grammar in self._kept or grammar in self._used

    def compile(self, grammar: Grammar) -> "CompiledGrammar":
        """The grammar, ready to be followed; at once where it is :meth:`known`, else in up to seconds.

        Raises:
            UserError: it is not well-formed, asks what cannot be enforced, or takes too long to compile.
        """
        found = self._kept.get(grammar) or self._used.get(grammar)
        if found is None:
            with self._lock:
                found = self._kept.get(grammar) or self._compile(grammar)
                self._kept[grammar] = found
                if isinstance(found, CompiledGrammar):
                    self._used[grammar] = found
                while len(self._kept) > _MAX_KEPT or sum(map(_bytes_of, self._kept.values())) > _MAX_KEPT_BYTES:
                    self._kept.popitem(last=False)
        if isinstance(found, str):
            raise UserError(found)
        return found

    def close(self) -> None:
        """End the process that compiles; the next grammar starts another."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()
                self._worker = None

    def _compile(self, grammar: Grammar) -> "CompiledGrammar | str":
        kind, value = next((name, value) for name, value in grammar if value is not None)
        if self._worker is None:
            setup = ([self._tokens(special) for special in (False, True)], self._ends, _MAX_BYTES)
            file = Path(__file__).with_name("compile_worker.py")
            self._worker = LimitedProcess(file, setup, seconds=_SECONDS, memory_bytes=_MEMORY_BYTES)
        try:
            fits, text = self._worker.call(kind, value)
        except LimitReached:
            limits = f"{_SECONDS} s or {_MEMORY_BYTES >> 30} GB"
            return f"grammar: '{kind}' takes more than {limits} to compile; make it simpler."
        if not fits:
            return f"grammar: '{kind}'{'' if text.startswith('at ') else ':'} {text.rstrip('.')}."
        special = of_structure(kind)
        if special not in self._compilers:
            self._compilers[special] = compiler_of(self._tokens(special), self._ends)
        return CompiledGrammar(compiled(self._compilers[special], kind, text), tuple(self._ends))

    def _tokens(self, special: bool) -> list[bytes]:
        """What each token stands for: missing ones for nothing, and special ones, whose spelling is no text, likewise.

        Where a grammar may name ``special`` tokens, they stand for bytes that are in no text.
        """
        own = self._tokenizer
        return [
            (b"\xff%d" % index if special and index < own.vocab_size and index not in self._ends else b"")
            if own.is_special(index)
            else own.token_bytes(index)
            for index in range(self._vocab_size)
        ]


@dataclass(frozen=True, eq=False)
class CompiledGrammar:
    """A grammar that is ready to be followed, by any number of texts.

    Attributes:
        compiled: xgrammar's.
        end_tokens: which end a text that is complete.
    """

    compiled: "xgrammar.CompiledGrammar"
    end_tokens: tuple[int, ...]

    def matcher(self) -> "Matcher":
        """At the beginning of a text."""
        return Matcher(self)


class Matcher:
    """Follows one text, token by token.

    An ambiguous grammar can take time that grows with the cube of the text's length, in the thread of the engine and
    so at the cost of all. One that takes more than its share is followed no further: only the end may come next.

    Attributes:
        failure: why the text could not be followed to its end, in the user's words; None while it can.
    """

    def __init__(self, grammar: CompiledGrammar) -> None:
        import xgrammar

        self.failure: str | None = None
        self._matcher = xgrammar.GrammarMatcher(grammar.compiled)
        self._ends = grammar.end_tokens
        self._seconds_left = _FIRST_SECONDS

    def accept(self, token: int) -> None:
        """``token`` is the next one of the text."""
        if self._going:
            started = time.thread_time()
            self._matcher.accept_token(token)
            self._spend(started)

    def allow(self, bits: torch.Tensor, row: int) -> None:
        """Set the row of bits [R, V/32] int32 to the tokens that may come next; where none may, to the end tokens."""
        if self._going:
            started = time.thread_time()
            self._matcher.fill_next_token_bitmask(bits, row)
            self._spend(started)
            if bits[row].any():
                return
        flags = np.zeros(32 * bits.shape[1], np.uint8)
        flags[list(self._ends)] = 1
        bits[row] = torch.from_numpy(np.packbits(flags, bitorder="little").view(np.int32))

    @property
    def _going(self) -> bool:
        return self.failure is None and not self._matcher.is_terminated()

    def _spend(self, started: float) -> None:
        self._seconds_left += _SECONDS_PER_TOKEN - (time.thread_time() - started)
        if self._seconds_left < 0:
            self.failure = "its grammar takes too long to follow; make it less ambiguous."


def forbid(logits: torch.Tensor, matchers: Sequence[tuple[int, Matcher]]) -> None:
    """Set to minus infinity, in rows (by their number) of logits [R, V], all tokens that may not come next."""
    import xgrammar

    bits = xgrammar.allocate_token_bitmask(len(matchers), logits.shape[1])
    for index, (_, matcher) in enumerate(matchers):
        matcher.allow(bits, index)
    rows, allowed = send([np.asarray([row for row, _ in matchers], np.int64), bits.numpy()], logits.device)
    part = logits.index_select(0, rows)
    xgrammar.apply_token_bitmask_inplace(part, allowed)
    logits.index_copy_(0, rows, part)


def _bytes_of(kept: CompiledGrammar | str) -> int:
    return len(kept) if isinstance(kept, str) else kept.compiled.memory_size_bytes
