"""The process in which rows are measured: a kernel that reads where nothing is takes this process with it, no more.

It is told rows by name, one JSON line each, and answers each with one line.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

import torch

from leyden.bench.gpu.clock import Clock, CudaClock, HostClock, measure_speed
from leyden.bench.gpu.kernels import GpuBench, GpuRow, kernel_jobs
from leyden.bench.gpu.result import OpRow
from leyden.bench.gpu.serving import serving_jobs
from leyden.core.roofline import Speed


def jobs_of(*, quick: bool) -> tuple[list[GpuRow], list[str]]:
    """All rows that can be measured here, those that say most first, and a line on those that cannot."""
    kernels, serving = kernel_jobs(quick=quick), serving_jobs(quick=quick)
    compared = [job for job in kernels if job.work.startswith("against")]
    engine, notes = _of("engine", "engine_jobs", "the engine", quick)
    models, more = _of("models", "model_jobs", "a model", quick)
    swept = [job for job in models if "training step" in job.work]
    first = [job for job in kernels if job not in compared] + serving + engine
    return first + [job for job in models if job not in swept] + compared + swept, more + notes


def _of(module: str, function: str, what: str, quick: bool) -> tuple[list[GpuRow], list[str]]:
    """Rows that need more than torch; none, and a line, where that is not installed."""
    try:
        return getattr(importlib.import_module(f"leyden.bench.gpu.{module}"), function)(quick=quick), []
    except ModuleNotFoundError as missing:
        return [], [f"rows with {what} are left out: they need {missing.name}, which is not installed"]


def measured(job: GpuRow, bench: GpuBench) -> OpRow:
    """The job's row; one that fails says why."""
    try:
        row = job.measure(bench)
    except torch.OutOfMemoryError:
        row = OpRow("", missing="out of memory")
    except Exception as error:
        row = OpRow("", missing=f"failed: {type(error).__name__}: {error}".splitlines()[0])
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return OpRow(**{**asdict(row), "work": job.work})


def main(arguments: Sequence[str]) -> None:
    """``DEVICE full|quick``; a line ``{"speed": null}`` asks for the speeds, ``{"row": ..., "speed": [...]}`` a row."""
    told, out = sys.stdin, os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print what they like
    device, quick = torch.device(arguments[0]), arguments[1] == "quick"
    clock = CudaClock() if device.type == "cuda" else HostClock()
    jobs = {job.work: job for job in jobs_of(quick=quick)[0]}
    for line in told:
        _answer(out, _do(json.loads(line), jobs, device, clock, quick=quick))


def _do(order: dict[str, Any], jobs: dict[str, GpuRow], device: torch.device, clock: Clock, *, quick: bool) -> Any:
    if "row" not in order:
        return list(vars(measure_speed(clock, device, quick=quick)).values())
    return asdict(measured(jobs[order["row"]], GpuBench(device, clock, Speed(*order["speed"]))))


def _answer(out: TextIO, answer: Any) -> None:
    print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
