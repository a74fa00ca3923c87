"""Several ranks on gloo for tests: started once a world size, then given functions to run.

A test calls ``ranks(4, function, *arguments)``: every rank calls ``function(*arguments)`` with a process group in
place, and the test gets the list of what they returned. ``function`` is a module-level function of the test's own file,
which the ranks import by its path. Within it, :func:`mesh_of` gives the mesh of a plan, made once in the life of the
ranks.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import io
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

_TIMEOUT_SECONDS = 240
_PRELOADED = ["leyden.parallel.attachment", "leyden.train.step", "leyden.checkpoint.training", "pytest", "gloo_ranks"]
"""Imported once, before ranks are forked: each would take seconds over it."""


class RankPool:
    """``world`` processes with a gloo process group; they die with this object's :meth:`close`."""

    def __init__(self, world: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._directory = tempfile.TemporaryDirectory()
        store = str(Path(self._directory.name) / "store")
        self._processes, self._pipes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What every rank's ``function(*arguments)`` returned.

        Raises:
            AssertionError: a rank raised; the message is its traceback, and the ranks are of no more use.
        """
        job = _packed((sys.modules[function.__module__].__file__, function.__qualname__, arguments))
        for pipe in self._pipes:
            pipe.send_bytes(job)
        results: dict[int, Any] = {}
        while len(results) < len(self._pipes):
            open_pipes = [pipe for rank, pipe in enumerate(self._pipes) if rank not in results]
            ready = wait(open_pipes, _TIMEOUT_SECONDS)
            if not ready:
                missing = [rank for rank in range(len(self._pipes)) if rank not in results]
                self._fail(f"ranks {missing} did not answer within {_TIMEOUT_SECONDS} s")
            for pipe in ready:
                rank = self._pipes.index(pipe)  # type: ignore[arg-type]
                try:
                    failed, results[rank] = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)  # type: ignore[union-attr]
                except (EOFError, ConnectionError):
                    self._fail(f"rank {rank} died")
                if failed:
                    self._fail(f"rank {rank} raised:\n{results[rank]}")
        return [results[rank] for rank in range(len(self._pipes))]

    def _fail(self, message: str) -> None:
        self.close()
        raise AssertionError(message)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._processes, self._pipes = [], []
        self._directory.cleanup()

    @property
    def alive(self) -> bool:
        """Whether the ranks can still be used."""
        return bool(self._processes) and all(process.is_alive() for process in self._processes)


@functools.cache
def mesh_of(plan: Any) -> Any:
    """The mesh of a plan, on a rank."""
    from leyden.parallel import start_mesh

    return start_mesh(plan, torch.device("cpu"))


def _serve(rank: int, world: int, store: str, pipe: Connection) -> None:
    """A rank: run what comes, until the pipe closes."""
    import torch.distributed as dist

    gc.freeze()  # what was imported is not looked through again and again
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            file, name, arguments = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
            try:
                answer = _packed((False, getattr(_module(file), name)(*arguments)))
            except BaseException:
                answer = _packed((True, traceback.format_exc()))
            pipe.send_bytes(answer)


@functools.cache
def _module(file: str) -> Any:
    """The test file as a module."""
    sys.path[:0] = [str(Path(file).parent), str(Path(__file__).parent)]
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[Path(file).stem] = module
    spec.loader.exec_module(module)
    return module


def _packed(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
