"""One side of a comparison in a process of its own, with its own allocator settings and threads.

Two libraries in one process would share what either changes of it. Here each side has a process that lives as long as
the benchmark; the parent asks one at a time, so only one computes. Run as a script, this file is that process: it
imports nothing of Leyden but what it is told to, so that the Leyden of another checkout can be asked as well.
"""

import importlib
import multiprocessing.connection
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch


class WorkerError(RuntimeError):
    """A worker's call raised; the message holds its traceback."""


class Worker:
    """A process that holds one object and answers calls of its methods.

    Args:
        target: the object's class, as ``"package.module:Class"``; imported in the process alone.
        arguments: what the class is made with.
        threads: how many threads torch gets there.
        source: a folder that packages are looked for in first: the ``src`` of another checkout.
        settings: environment variables of the process alone.

    Raises:
        WorkerError: the class cannot be imported or made there.
    """

    def __init__(
        self,
        target: str,
        *arguments: Any,
        threads: int,
        source: Path | None = None,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._pipe, theirs = multiprocessing.connection.Pipe()
        path = [*([str(source)] if source else []), *sys.path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}  # for processes of its own too
        with theirs:
            # -P: the folder of this file is no place to import from.
            command = [sys.executable, "-P", __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**environment, **settings})
        try:
            self._ask((target, arguments, threads), f"making {target}")
        except BaseException:
            self.__exit__()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """Call ``method`` in the process and wait for its result.

        Raises:
            WorkerError: the method raised, or the process died.
        """
        return self._ask((method, arguments), method)

    def _ask(self, message: Any, what: str) -> Any:
        try:
            self._pipe.send(message)
            succeeded, value = self._pipe.recv()
        except (EOFError, OSError):
            raise WorkerError(f"the worker died in {what} (exit code {self._process.wait(5)})") from None
        if not succeeded:
            raise WorkerError(f"{what} failed in the worker:\n{value}")
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _serve(pipe: multiprocessing.connection.Connection) -> None:
    """Make the object, then answer calls, until the parent closes the pipe."""
    held: Any = None
    while True:
        try:
            message = pipe.recv()
        except (EOFError, KeyboardInterrupt, ConnectionResetError):
            return
        try:
            if held is None:
                held, value = _made(*message), None
            else:
                method, arguments = message
                value = getattr(held, method)(*arguments)
            pipe.send((True, value))
        except Exception:
            pipe.send((False, traceback.format_exc()))


def _made(target: str, arguments: tuple[Any, ...], threads: int) -> Any:
    torch.set_num_threads(threads)
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


if __name__ == "__main__":
    _serve(multiprocessing.connection.Connection(int(sys.argv[1])))
