"""Calls that are bounded in time and memory, whatever the library behind them does: they run in a child process.

Some work on input that strangers wrote cannot be bounded from outside the library that does it: text from HTML and
PDF, chat templates, grammars. A :class:`LimitedProcess` does such work in one child process, which is started at the
first call, kept for the next, and ended when a call takes more than it may.
"""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, Any, Literal

from leyden.core.errors import UserError

_CHILD = Path(__file__).with_name("limited_child.py")


class LimitReached(UserError):  # noqa: N818 - the name says what happened to a call
    """A call took more time or memory than it may, or ended the process that ran it.

    Attributes:
        reason: ``"time"``, ``"memory"`` or ``"crash"``.
    """

    def __init__(self, message: str, reason: Literal["time", "memory", "crash"]) -> None:
        super().__init__(message)
        self.reason: Literal["time", "memory", "crash"] = reason


class LimitedProcess:
    """A function that runs in a child process with limits. Threads may share it: their calls run one after the other.

    Args:
        file: a source file with a function ``make(*setup)`` that returns the function to be called. The child loads
            this file alone, not the packages above it, so it starts as fast as its own imports.
        setup: the arguments of ``make``; they, and all arguments and results, are pickled.
        seconds: the processor's time that one call may take. The clock on the wall may show ten times as much, and
            ten seconds more, since other programs share the processor.
        memory_bytes: the memory that calls may take, beyond what the child holds once it is set up.
    """

    def __init__(self, file: Path, setup: tuple[Any, ...] = (), *, seconds: float, memory_bytes: int) -> None:
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._begin = (str(file), setup, seconds, memory_bytes)
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def call(self, *arguments: Any) -> Any:
        """What the function returns for ``arguments``.

        Raises:
            LimitReached: the call took more time or memory than it may, or the child crashed; the next call has a new
                child.
            Exception: whatever the function raised; as a RuntimeError with its words, where it cannot be pickled.
        """
        with self._lock:
            used = self._child is not None and self._child.is_mine()
            kind, value = self._ask(arguments)
            if kind == "memory" and used:
                # What earlier calls left behind counts, too: only a new child can say that this one is at fault.
                kind, value = self._ask(arguments)
        if kind == "error":
            raise value
        if kind == "result":
            return value
        raise self._explain(kind)

    def close(self) -> None:
        """End the child; a call after this starts another."""
        with self._lock:
            self._end()

    def _ask(self, arguments: tuple[Any, ...]) -> tuple[str, Any]:
        if self._child is None or not self._child.is_mine():
            self._child = _Child()
            answer = self._child.ask((list(sys.path), *self._begin), None)
            if answer[0] != "result":
                self._end()
                return answer
        try:
            answer = self._child.ask(arguments, 10 + 10 * self._seconds)
        except BaseException:
            self._end()  # its answer would be taken for that of the next call
            raise
        if answer[0] not in ("result", "error"):
            self._end()
        return answer

    def _end(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def _explain(self, kind: str) -> LimitReached:
        if kind == "time":
            return LimitReached(f"it took more than {self._seconds:g} seconds", "time")
        if kind == "memory":
            return LimitReached(f"it took more than {self._memory_bytes / 2**20:,.0f} MiB of memory", "memory")
        return LimitReached(f"it ended the process that ran it ({kind})", "crash")


class _Child:
    """The process behind a :class:`LimitedProcess`, and its two pipes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input: IO[bytes] = self._process.stdin
        self._output: IO[bytes] = self._process.stdout
        self._parent = os.getpid()
        self.close = weakref.finalize(self, _end, self._process, self._input, self._output, self._parent)

    def is_mine(self) -> bool:
        """Whether this process started it; one that was forked since must not speak with its parent's child."""
        return self._parent == os.getpid()

    def ask(self, message: Any, seconds: float | None) -> tuple[str, Any]:
        """The answer: ``result`` or ``error`` with a value, else ``memory``, ``time`` or how the child ended."""
        try:
            pickle.dump(message, self._input)
            self._input.flush()
            if not _readable(self._output, seconds):
                return "time", None
            return pickle.load(self._output)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            return self._how_it_ended(), None

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGPROF:
            return "time"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"exit code {code}"


def _readable(pipe: IO[bytes], seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def _end(process: subprocess.Popen[bytes], to: IO[bytes], back: IO[bytes], parent: int) -> None:
    if parent == os.getpid():
        process.kill()
        process.wait()
    for pipe in (to, back):
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
