"""``leyden bench ops``: each GPU kernel's time beside the floor that the hardware sets, and the goals.

Nothing is printed where a test of the ops is red. Runs with torch, triton, pytest and the checkout alone; the rows
with a model also need pydantic.
"""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import leyden
from leyden.bench.ops_clock import Clock, CudaClock, measure_speed
from leyden.bench.ops_result import OpRow, OpsResult
from leyden.bench.ops_rows import Bench, Job, kernel_jobs
from leyden.bench.ops_serving import serving_jobs
from leyden.core.environment import installed_version, machine
from leyden.core.errors import UserError

_CHECKOUT = Path(leyden.__file__).parents[2]


class RedTestsError(Exception):
    """Tests of the ops failed, so that no figure would mean anything; the message names them."""


def run_ops(only: str | None = None, output: Path | None = None, *, quick: bool = False) -> OpsResult:
    """Test the ops on the GPU, measure every row and print the table.

    Args:
        only: a regular expression; rows whose name it is found in are measured.
        output: where to write the result as JSON as well.
        quick: tiny shapes, to see that everything runs; its figures mean nothing.

    Raises:
        UserError: no CUDA GPU, no tests beside the package, or no row that ``only`` chooses.
        RedTestsError: the ops' tests fail here.
    """
    if not torch.cuda.is_available():
        raise UserError(
            "leyden bench ops needs a CUDA GPU, and torch sees none here. On a CPU run `leyden bench cpu`; "
            "the kernels' tests run there in Triton's interpreter: `pytest -m 'not gpu' tests/ops`."
        )
    return run_on(torch.device("cuda"), CudaClock(), only, output, quick=quick)


def run_on(
    device: torch.device, clock: Clock, only: str | None = None, output: Path | None = None, *, quick: bool = False
) -> OpsResult:
    """:func:`run_ops` on any device by any clock."""
    jobs, notes = _jobs(quick)
    chosen = _chosen(jobs, only)
    red = failing_tests(device)
    if red:
        raise RedTestsError(
            f"leyden bench ops prints no figures while tests of the ops fail; {len(red)} do:\n" + "\n".join(red)
        )
    bench = Bench(device, clock, measure_speed(clock, device, quick=quick))
    rows = [_measured(job, bench) for job in chosen]
    if not notes:
        from leyden.bench.ops_models import flatness, forget

        forget()
        rows += flatness(rows)
    options = f"{' --only ' + repr(only) if only else ''}{' --quick' * quick}"
    result = OpsResult(
        rows=rows,
        machine={**machine(), **_gpu(device), **vars(bench.speed)},
        versions={"torch": torch.__version__, "triton": installed_version("triton"), "cuda": torch.version.cuda},
        command=f"python -m leyden bench ops{options}",
        notes=notes + ["quick form: these figures mean nothing"] * quick,
    )
    if output is not None:
        result.save(output)
    print(result.table())
    return result


def failing_tests(device: torch.device) -> list[str]:
    """The names of the ops' tests that fail on ``device``: on a GPU those marked so, else in Triton's interpreter.

    Raises:
        UserError: the package has no tests beside it, pytest is missing, or there was nothing to run.
    """
    tests = _CHECKOUT / "tests" / "ops"
    if not tests.is_dir():
        raise UserError(
            "leyden bench ops prints figures only after the ops' tests have passed, and an installed package has none; "
            "run it in a checkout: `git clone`, then `PYTHONPATH=src python -m leyden bench ops` there."
        )
    if importlib.util.find_spec("pytest") is None:
        raise UserError("leyden bench ops runs the ops' tests first; install what they need: pip install pytest.")
    marked, environment = "gpu", {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if device.type == "cpu":
        marked, environment["TRITON_INTERPRET"] = "not gpu", "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(_CHECKOUT / "src"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-m", marked, "-rfE", "--tb=no", "tests/ops"]
    _say(f"testing the ops first: pytest {' '.join(command[3:])}")
    finished = subprocess.run(command, cwd=_CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode == 0:
        return []
    named = [line for line in finished.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return named or (finished.stdout + finished.stderr).strip().splitlines()[-10:] or ["pytest said nothing"]


def _jobs(quick: bool) -> tuple[list[Job], list[str]]:
    """All rows that can be measured here, and a line on those that cannot."""
    jobs = kernel_jobs(quick=quick) + serving_jobs(quick=quick)
    try:
        from leyden.bench.ops_models import model_jobs
    except ModuleNotFoundError as missing:
        return jobs, [f"rows with a model are left out: they need {missing.name}, which is not installed"]
    return jobs + model_jobs(quick=quick), []


def _chosen(jobs: Sequence[Job], only: str | None) -> list[Job]:
    try:
        chosen = [job for job in jobs if only is None or re.search(only, job.work)]
    except re.error as error:
        raise UserError(f"--only takes a regular expression; {only!r} is none: {error}.") from None
    if not chosen:
        raise UserError(f"--only {only!r} is found in no row's name; the rows: {'; '.join(job.work for job in jobs)}.")
    return chosen


def _measured(job: Job, bench: Bench) -> OpRow:
    """The job's row; one that fails says why, and the next goes on."""
    _say(job.work)
    try:
        row = job.measure(bench)
    except torch.OutOfMemoryError:
        row = OpRow("", missing="out of memory")
    except Exception as error:
        row = OpRow("", missing=f"failed: {type(error).__name__}: {error}".splitlines()[0])
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return replace(row, work=job.work)


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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
