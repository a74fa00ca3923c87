"""A worker answers calls, reports failures, and ends with its parent's block."""

import os

import pytest
import torch

from leyden.bench.worker import Worker, WorkerError


class Held:
    """What the worker holds in these tests."""

    def __init__(self, start: int) -> None:
        self.total = start

    def add(self, amount: int) -> int:
        self.total += amount
        return self.total

    def place(self) -> tuple[int, int]:
        return os.getpid(), torch.get_num_threads()

    def fail(self) -> None:
        raise ValueError("no such lightning")

    def die(self) -> None:
        os._exit(3)


def test_a_worker_keeps_its_object_between_calls_and_fails_loudly():
    with Worker(f"{__name__}:Held", 5, threads=1) as worker:
        assert worker.call("add", 2) == 7
        assert worker.call("add", 2) == 9
        process, threads = worker.call("place")
        assert process != os.getpid()
        assert threads == 1
        with pytest.raises(WorkerError, match="no such lightning"):
            worker.call("fail")
        assert worker.call("add", 1) == 10
        with pytest.raises(WorkerError, match=r"died in die \(exit code 3\)"):
            worker.call("die")
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
