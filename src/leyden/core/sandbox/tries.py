"""Runs inside the sandbox, as a source text: tries to get out, and says in JSON which ways were closed."""

import ctypes
import json
import os
import socket
import sys
import threading
from collections.abc import Callable

_NEW_USER_NAMESPACE = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)


def refused(call: Callable[[], object]) -> bool:
    """Whether the system answered a call with an error."""
    try:
        call()
    except (OSError, RuntimeError):  # a thread that cannot start
        return True
    return False


def start_too_many(most: int) -> None:
    """Start more threads than there may be."""
    over = threading.Event()
    try:
        for _ in range(2 * most):
            threading.Thread(target=over.wait, daemon=True).start()
    finally:
        over.set()


def kernel_call(result: int) -> None:
    """Raise where a call of the C library failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


def main() -> None:
    """Try every way."""
    ways = {
        "a socket": lambda: socket.socket(),
        "a file in the root folder": lambda: os.mkdir("/written"),
        "a look at other processes": lambda: os.listdir("/proc"),
        "tracing": lambda: kernel_call(_libc.ptrace(16, os.getppid(), 0, 0)),
        "a namespace of its own": lambda: kernel_call(_libc.unshare(_NEW_USER_NAMESPACE)),
        "more processes": lambda: start_too_many(int(sys.argv[1])),
    }
    print(json.dumps({way: refused(call) for way, call in ways.items()}))


if __name__ == "__main__":
    main()
