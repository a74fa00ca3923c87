"""The benchmarks behind ``leyden bench``.

Names resolve lazily (PEP 562), so that ``leyden bench gpu`` runs on a machine with torch and triton alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.bench.cpu.run import run_cpu as run_cpu
    from leyden.bench.gpu.run import run_gpu as run_gpu
    from leyden.bench.result import BenchResult as BenchResult
    from leyden.bench.result import ResultRow as ResultRow
    from leyden.bench.result import render as render

_HOMES = {
    "BenchResult": "leyden.bench.result",
    "ResultRow": "leyden.bench.result",
    "render": "leyden.bench.result",
    "run_cpu": "leyden.bench.cpu.run",
    "run_gpu": "leyden.bench.gpu.run",
}
__all__ = ["BenchResult", "ResultRow", "render", "run_cpu", "run_gpu"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'leyden.bench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
