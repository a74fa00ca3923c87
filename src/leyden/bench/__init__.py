"""The benchmarks behind ``leyden bench``."""

from leyden.bench.cpu import run_cpu
from leyden.bench.result import BenchResult, Row, render

__all__ = ["BenchResult", "Row", "render", "run_cpu"]
