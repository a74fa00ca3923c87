"""One side of a comparison in a process of its own, with its own allocator settings and threads.

Two libraries in one process would share what either changes of it. Here each side has a process that lives as long as
the benchmark; the parent asks one at a time, so only one computes.
"""

import importlib
import multiprocessing
import multiprocessing.connection
import traceback
from typing import Any, Self

import torch


class WorkerError(RuntimeError):
    """A worker's call raised; the message holds its traceback."""


class Worker:
    """A spawned process that holds one object and answers calls of its methods.

    Args:
        target: the object's class, as ``"package.module:Class"``; imported in the process alone.
        arguments: what the class is made with.
        threads: how many threads torch gets there.
    """

    def __init__(self, target: str, *arguments: Any, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, target, arguments, threads), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call ``method`` in the process and wait for its result.

        Raises:
            WorkerError: the method raised, or the process died.
        """
        try:
            self._pipe.send((method, arguments))
            succeeded, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise WorkerError(f"the worker died in {method} (exit code {self._process.exitcode})") from None
        if not succeeded:
            raise WorkerError(f"{method} failed in the worker:\n{value}")
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: multiprocessing.connection.Connection, target: str, arguments: tuple[Any, ...], threads: int) -> None:
    """Answer calls until the parent closes the pipe."""
    torch.set_num_threads(threads)
    module, _, name = target.partition(":")
    held = getattr(importlib.import_module(module), name)(*arguments)
    while True:
        try:
            method, given = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send((True, getattr(held, method)(*given)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
