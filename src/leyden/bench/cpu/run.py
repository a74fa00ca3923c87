"""``leyden bench cpu``: training, prefill, decoding, memory and the lightning op beside transformers' MiniMax.

Both libraries compute with the same weights, shape and dtype, each in a process of its own with the settings its users
get: ours keeps freed memory, as every ``leyden`` command does; theirs is stock. The processes are driven in turn
(A B A B ...), one computing at a time, and medians are compared. CpuTheirs runs the fastest variant that it offers,
chosen by measurement for each kind of work. Before anything is timed both must compute the same logits.
"""

import importlib.util
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch

from leyden import __version__
from leyden.bench.ab import ABBenchmark
from leyden.bench.beside import beside_note, busy
from leyden.bench.cpu.plan import FULL, QUICK, CpuPlan
from leyden.bench.cpu.rows import decode_rows, memory_row, op_rows, prefill_rows, train_rows
from leyden.bench.result import BenchResult, ResultRow, show
from leyden.bench.work import bench_dtype, compare_logits, random_tokens
from leyden.bench.worker import Worker
from leyden.checkpoint import save
from leyden.core.errors import UserError
from leyden.core.log import Bar, progress
from leyden.core.waiting import waiting_settings
from leyden.evaluate import machine
from leyden.model import HybridLM, ModelConfig


def run_cpu(*, quick: bool = False, beside: int = 0, output: Path | None = None) -> BenchResult:
    """Run the whole comparison and print its table; under 8 minutes, or 40 seconds with ``quick``, on two cores.

    Args:
        quick: a small shape and few repeats, to see that everything runs; its figures mean nothing.
        beside: busy processes that run along with both sides.
        output: where to write the result as JSON as well.

    Raises:
        UserError: transformers is not installed.
        RuntimeError: the two sides compute different logits, so that no figure would mean anything.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError("leyden bench cpu compares with transformers; install it: pip install transformers.")
    plan = replace(QUICK if quick else FULL, dtype=bench_dtype())
    with tempfile.TemporaryDirectory() as parent:
        directory = str(Path(parent, "model"))
        save(bench_model(plan.model), None, directory, layout="transformers")
        with busy(beside), progress("bench cpu", _turns(plan), "turns") as bar:
            rows, settings, checks = _measure(directory, plan, bar)
    result = BenchResult(
        name="cpu",
        rows=rows,
        settings={"quick": quick, "beside": beside, **settings},
        checks=checks,
        machine=machine(),
        versions={"leyden": __version__, "torch": torch.__version__, "transformers": version("transformers")},
        command="leyden bench cpu" + " --quick" * quick + f" --beside {beside}" * (beside > 0),
        notes=["quick form: these figures mean nothing"] * quick + beside_note(beside),
    )
    show(result, output)
    return result


def _measure(directory: str, plan: CpuPlan, bar: Bar) -> tuple[list[ResultRow], dict, dict]:
    """The rows, the settings and the checks for JSON."""
    with ExitStack() as stack:
        theirs, ours = (stack.enter_context(_worker(side, directory, plan)) for side in ("theirs", "ours"))
        tokens = random_tokens(1, 600, plan.model.vocab_size)[0].tolist()
        checks = compare_logits(theirs.call("logits", tokens), ours.call("logits", tokens))
        peak = ours.call("matmul_flops_per_second", plan.dtype)
        benchmark = ABBenchmark(theirs, ours, bar)
        rows, variant = train_rows(benchmark, plan, peak)
        rows += prefill_rows(benchmark, plan, peak) + decode_rows(benchmark, plan) + op_rows(benchmark, plan)
    with ExitStack() as stack:  # fresh processes, whose memory nothing else has raised
        theirs, ours = (stack.enter_context(_worker(side, directory, plan)) for side in ("theirs", "ours"))
        rows.append(memory_row(theirs, ours, plan, variant))
    settings = {**asdict(plan), "model": plan.model.model_dump(mode="json"), "matmul_flops_per_second": peak}
    return rows, settings, checks


def _worker(side: str, directory: str, plan: CpuPlan) -> Worker:
    settings = waiting_settings() if side == "ours" else {}  # as every command of ours begins
    return Worker(f"leyden.bench.cpu.{side}:Cpu{side.capitalize()}", directory, threads=plan.threads, settings=settings)


def bench_model(config: ModelConfig) -> HybridLM:
    """Initial weights, the output projection enlarged so that logits are far from equal."""
    model = HybridLM(config, seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    return model


def _turns(plan: CpuPlan) -> int:
    """How often the bar moves: once a round of measurement, once a choice of variant."""
    rounds = [plan.repeats] * (len(plan.train) + 1 + 2) + [plan.long_repeats] * (len(plan.prefill) - 1 + 2)
    return sum(repeats + 1 for repeats in rounds) + len(plan.train) + 1 + 2
