"""The child of :class:`leyden.core.limited.LimitedProcess`: run as a file, it imports the standard library alone.

It speaks pickle with its parent over standard input and output. First come the parent's ``sys.path``, the file whose
``make(*setup)`` gives the function, and the limits; then the arguments of one call after the other.
"""

import importlib.util
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from typing import IO, Any


def main() -> None:
    """Answer calls until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what ends
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    sys.path[:], file, setup, seconds, memory_bytes = pickle.load(sys.stdin.buffer)
    answer = _answer(lambda: _load(file)(*setup), 0)
    function: Callable[..., Any] | None = answer[1] if answer[0] == "result" else None
    _limit_memory(memory_bytes)
    _send(channel, ("result", None) if function else answer)
    while function:
        try:
            arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        except MemoryError:
            _send(channel, ("memory", None))
            return
        _send(channel, _answer(lambda given=arguments: function(*given), seconds))


def _load(file: str) -> Callable[..., Callable[..., Any]]:
    """The function ``make`` of a source file, of which no package is imported."""
    spec = importlib.util.spec_from_file_location("leyden_limited", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.make


def _answer(call: Callable[[], Any], seconds: float) -> tuple[str, Any]:
    """What came of a call: its result, the exception it raised, or that memory did not suffice.

    The timer counts the time that the processor spends on this process. It ends the process: no library that is stuck
    can be asked to stop.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return "result", call()
    except MemoryError:
        return "memory", None
    except BaseException as error:  # foreign code may raise any type, a panic of Rust is no Exception
        return "error", error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _send(channel: IO[bytes], answer: tuple[str, Any]) -> None:
    kind, value = answer
    try:
        if kind == "error" and not isinstance(value, Exception):
            raise TypeError("an exit or a panic")  # it must not end the parent
        message = pickle.dumps(answer)
        if kind == "error":
            pickle.loads(message)
    except MemoryError:
        message = pickle.dumps(("memory", None))
    except Exception as error:  # what cannot travel: its words can
        told = value if kind == "error" else error
        message = pickle.dumps(("error", RuntimeError(f"{type(told).__name__}: {told}")))
    channel.write(message)
    channel.flush()


def _limit_memory(more_bytes: int) -> None:
    """Let the address space grow by ``more_bytes`` from here; where the system does not tell its size, by no limit."""
    try:
        with open("/proc/self/statm", encoding="ascii") as numbers:
            limit = int(numbers.read().split()[0]) * resource.getpagesize() + more_bytes
    except OSError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main()
