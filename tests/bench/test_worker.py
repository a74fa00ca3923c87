"""A worker answers calls, reports failures, and ends with its parent's block."""

import os
from pathlib import Path

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
    with Worker(f"{__name__}:Held", 5, threads=1, source=Path(__file__).parent) as worker:
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


def test_what_cannot_be_made_is_told():
    with pytest.raises(WorkerError, match="No module named 'no_such_side'"):
        Worker("no_such_side:Side", threads=1)


def test_another_checkout_is_asked(tmp_path):
    (tmp_path / "leyden").mkdir()
    (tmp_path / "leyden" / "__init__.py").write_text("class Side:\n    def name(self):\n        return 'other'\n")
    with Worker("leyden:Side", threads=1, source=tmp_path) as worker:
        assert worker.call("name") == "other"
