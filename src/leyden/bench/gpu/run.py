"""``leyden bench gpu``: checks every kernel on a GPU and measures its distance from the hardware's limits, in minutes.

The ops' tests run first, then every row is measured beside the floor that the hardware sets. Tests and rows run in
processes of their own, so that a crash ends no more than one of them; a row that rests on a red test is measured all
the same, and marked. The result is written after every row. Runs with torch, triton and a checkout; the tests also need
pytest, the rows with a model pydantic.
"""

import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from leyden.bench.gpu.kernels import GpuRow
from leyden.bench.gpu.result import OpRow, OpsResult, worst_first
from leyden.bench.gpu.tests import FileResult, run_tests, test_files
from leyden.bench.gpu.worker import jobs_of
from leyden.core.environment import installed_version, machine
from leyden.core.errors import UserError
from leyden.core.roofline import Speed

_FOR_TESTS = 0.4
"""The share of the time that tests may take."""

_FOR_A_ROW = 60.0
"""Seconds, with what its kernels take to be compiled."""


class GpuWorkerError(Exception):
    """The process that measures has ended, or does not answer; the message says which."""


class Measures(Protocol):
    """What measures rows, and can be begun anew."""

    def ask(self, order: dict[str, Any], seconds: float) -> Any: ...
    def close(self) -> None: ...


class GpuWorker:
    """A process of :mod:`leyden.bench.gpu.worker`."""

    def __init__(self, device: torch.device, *, quick: bool) -> None:
        command = [sys.executable, "-m", "leyden.bench.gpu.worker", str(device), "quick" if quick else "full"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def ask(self, order: dict[str, Any], seconds: float) -> Any:
        """The answer to an order.

        Raises:
            GpuWorkerError: there is none, or none in time; then there will be none to others either.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps(order), file=self._process.stdin, flush=True)
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise GpuWorkerError(f"no answer within {seconds:.0f} s") from None
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise GpuWorkerError(f"its process ended {f'by signal {-code}' if code < 0 else f'with code {code}'}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")


@dataclass
class TimeBudget:
    """The time that there is, by a clock in seconds.

    Attributes:
        began: when.
        seconds: all of it.
        clock: monotonic.
    """

    began: float
    seconds: float
    clock: Callable[[], float]

    @property
    def left(self) -> float:
        """Seconds."""
        return self.began + self.seconds - self.clock()

    def share(self, part: float) -> float:
        """When ``part`` of it is over."""
        return self.began + part * self.seconds

    def say(self, what: str) -> None:
        """On the error stream, with the time that is left."""
        minutes, seconds = divmod(max(0, int(self.left)), 60)
        print(f"[{minutes}:{seconds:02} left] {what}", file=sys.stderr, flush=True)


def run_gpu(
    only: str | None = None, output: Path | None = None, *, minutes: float = 8, quick: bool = False
) -> OpsResult:
    """Test the ops on the GPU, measure every row and print the table, the worst row first.

    Args:
        only: a regular expression; rows whose name it is found in are measured.
        output: where to write the result as JSON; it holds after every row what there is by then.
        minutes: that all of it may take.
        quick: tiny shapes, to see that everything runs; its figures mean nothing.

    Raises:
        UserError: no CUDA GPU, no checkout, no time, or no row that ``only`` chooses.
    """
    if not torch.cuda.is_available():
        raise UserError(
            "leyden bench gpu needs a CUDA GPU, and torch sees none here. On a CPU run `leyden bench cpu`; "
            "the kernels' tests run there in Triton's interpreter: `pytest -m 'not gpu' tests/ops`."
        )
    return run_on(torch.device("cuda"), only, output, minutes=minutes, quick=quick)


def run_on(
    device: torch.device,
    only: str | None = None,
    output: Path | None = None,
    *,
    minutes: float = 8,
    quick: bool = False,
    start: Callable[..., Measures] = GpuWorker,
    clock: Callable[[], float] = time.monotonic,
) -> OpsResult:
    """:func:`run_gpu` on any device, by any process that measures."""
    if not minutes > 0:
        raise UserError(f"--minutes {minutes:g}: a number above 0 expected.")
    jobs, notes = jobs_of(quick=quick)
    chosen = _chosen(jobs, only)
    budget = TimeBudget(clock(), 60 * minutes, clock)
    options = f" --minutes {minutes:g}{' --only ' + repr(only) if only else ''}{' --quick' * quick}"
    result = OpsResult(
        rows=[],
        machine={**machine(), **_gpu(device)},
        versions={"torch": torch.__version__, "triton": installed_version("triton"), "cuda": torch.version.cuda},
        command=f"python -m leyden bench gpu{options}",
        notes=notes + ["quick form: these figures mean nothing"] * quick,
        tests=[],
        finished=False,
    )
    run = _Run(result, output, budget)
    run.test(device)
    run.measure(chosen, lambda: start(device, quick=quick))
    print(run.result.table())
    return run.result


class _Run:
    """A run under way, whose result is on the disk as far as it is."""

    def __init__(self, result: OpsResult, output: Path | None, budget: TimeBudget) -> None:
        self.result, self._output, self._budget = result, output, budget

    def _now(self, **changes: Any) -> None:
        self.result = replace(self.result, **changes)
        if self._output is not None:
            self.result.save(self._output)

    def test(self, device: torch.device) -> None:
        """Every file of tests, within its share of the time."""
        files = test_files(device)
        if not files:
            raise UserError(
                "leyden bench gpu runs the ops' tests first, and an installed package has none; run it in a checkout: "
                "`git clone`, then `PYTHONPATH=src python -m leyden bench gpu` there."
            )
        self._budget.say(f"testing {len(files)} files of ops")
        for tested in run_tests(files, device, self._budget.share(_FOR_TESTS), self._budget.clock):
            self._budget.say(f"{tested.outcome}, {tested.seconds:.0f} s: {tested.file}")
            self._now(tests=[*self.result.tests, tested])

    def measure(self, jobs: Sequence[GpuRow], start: Callable[[], Measures]) -> None:
        """Every row, as long as there is time; what cannot be measured says why."""
        worker, speed = None, None
        try:
            for number, job in enumerate(jobs, 1):
                seconds = min(_FOR_A_ROW, self._budget.left)
                if seconds <= 0:
                    self._add(OpRow(job.work, missing="no time was left"))
                    continue
                self._budget.say(f"{number}/{len(jobs)} {job.work}")
                try:
                    worker = worker or start()
                    if speed is None:
                        speed = Speed(*worker.ask({}, seconds))
                        self._now(machine={**self.result.machine, **vars(speed)})
                    row = worker.ask({"row": job.work, "speed": list(vars(speed).values())}, seconds)
                    self._add(OpRow(**{**row, "red": tuple(row["red"])}))
                except GpuWorkerError as error:
                    self._add(OpRow(job.work, missing=str(error)))
                    if worker is not None:
                        worker.close()
                    worker = None
        finally:
            if worker is not None:
                worker.close()
        self._now(rows=worst_first(self.result.rows + _flatness(self.result)), finished=True)

    def _add(self, row: OpRow) -> None:
        """A row, marked with the red tests that it rests on."""
        tests: list[FileResult] = self.result.tests
        red = tuple(tested.file for tested in tests if tested.outcome == "red" and tested.touches(row.work))
        self._now(rows=worst_first([*self.result.rows, replace(row, red=red)]))


def _flatness(result: OpsResult) -> list[OpRow]:
    try:
        from leyden.bench.gpu.models import flatness
    except ModuleNotFoundError:
        return []
    return flatness(result.rows)


def _chosen(jobs: Sequence[GpuRow], only: str | None) -> list[GpuRow]:
    try:
        chosen = [job for job in jobs if only is None or re.search(only, job.work)]
    except re.error as error:
        raise UserError(f"--only takes a regular expression; {only!r} is none: {error}.") from None
    if not chosen:
        raise UserError(f"--only {only!r} is found in no row's name; the rows: {'; '.join(job.work for job in jobs)}.")
    return chosen


def _gpu(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"gpu": "no GPU", "driver": None}
    properties = torch.cuda.get_device_properties(device)
    return {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "driver": _driver()}


def _driver() -> str | None:
    """The version of NVIDIA's driver, where its tool is installed."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None
