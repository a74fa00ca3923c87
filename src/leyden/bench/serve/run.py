"""``leyden bench serve``: the engine beside transformers and llama.cpp, many streams, chats, long contexts, int8.

All sides compute with the same weights, shape and dtype, each in a process of its own; they are driven in turn
(A B A B ...), one computing at a time, and medians are compared. Where the other software offers several ways, the
fastest is chosen by measurement. Before anything is timed all sides must compute the same logits. What cannot be
measured here is named under the table, with the reason.
"""

import importlib.util
import json
import sysconfig
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from leyden import __version__
from leyden.bench.beside import beside_note, busy
from leyden.bench.result import BenchResult, ResultRow, show
from leyden.bench.serve.against import Llama, generate_rows, greedy_agreement, llama_difference, llama_rows, server_rows
from leyden.bench.serve.http import ServerError, our_server, their_server
from leyden.bench.serve.llama import LlamaError, LlamaWorker
from leyden.bench.serve.plan import FULL, QUICK, ServePlan, prompts
from leyden.bench.serve.rows import ServeBench, chat_rows, context_rows, int8_rows, stream_rows
from leyden.bench.work import DTYPES, bench_dtype
from leyden.bench.worker import Worker
from leyden.checkpoint import save
from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.core.waiting import waiting_settings
from leyden.evaluate import machine
from leyden.model import HybridLM
from leyden.tokenizer import Tokenizer

_TOLERANCE = 1e-4
"""Largest difference allowed between two sides' float32 logits, as a share of the largest logit."""
_SOURCE_CHARACTERS = 3_000_000


def run_serve(
    *, quick: bool = False, beside: int = 0, output: Path | None = None, llama: str | None = None
) -> BenchResult:
    """Run the whole comparison and print its table.

    Args:
        quick: a small shape and few repeats, to see that everything runs; its figures mean nothing.
        beside: busy processes that run along with all sides.
        output: where to write the result as JSON as well.
        llama: an interpreter that has llama-cpp-python. None: those rows are left out.

    Raises:
        UserError: transformers is not installed, or ``llama`` has no llama-cpp-python.
        RuntimeError: two sides compute different logits, so that no figure would mean anything.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError("leyden bench serve runs transformers too; install it: pip install transformers accelerate.")
    plan = replace(QUICK if quick else FULL, dtype=bench_dtype())
    versions = {"leyden": __version__, "torch": torch.__version__, "transformers": version("transformers")}
    notes = ["quick form: these figures mean nothing"] * quick + beside_note(beside)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        worker = None if llama is None else stack.enter_context(_llama(llama, plan))
        texts = _write(plan, Path(directory), gguf=worker is not None)
        if worker is not None:
            versions["llama-cpp-python"] = worker.version
        with busy(beside), progress("bench serve", _turns(plan, worker is not None), "turns") as bar:
            ours = stack.enter_context(_worker("ours:ServeOurs", directory, plan))
            bench = ServeBench(plan, ours, bar)
            rows, checks = _measure(bench, directory, worker, texts, notes)
    result = BenchResult(
        name="serve",
        rows=rows,
        settings={"quick": quick, "beside": beside, **asdict(plan), "model": plan.model.model_dump(mode="json")},
        checks=checks,
        machine=machine(),
        versions=versions,
        command="leyden bench serve"
        + " --quick" * quick
        + f" --beside {beside}" * (beside > 0)
        + " --llama PYTHON" * (llama is not None),
        notes=notes,
    )
    show(result, output)
    return result


def _measure(
    bench: ServeBench, directory: str, worker: LlamaWorker | None, texts: list[str], notes: list[str]
) -> tuple[list[ResultRow], dict[str, float]]:
    """The rows and the checks; what could not be measured is added to ``notes``."""
    checks: dict[str, float] = {"tolerance": _TOLERANCE}
    rows = stream_rows(bench)
    with _worker("theirs:ServeTheirs", directory, bench.plan) as theirs:
        checks["transformers_logit_difference"] = _checked("transformers", _difference(bench, theirs))
        rows += generate_rows(bench, theirs)
    try:
        rows += _over_http(bench, directory, texts)
    except ServerError as error:
        notes.append(f"transformers serve: not measured: {error}")
    if worker is None:
        notes.append("llama.cpp: not measured: name an interpreter that has llama-cpp-python by --llama")
    else:
        llama = Llama(worker, {dtype: str(_gguf(directory, dtype)) for dtype in DTYPES})
        checks["llama_logit_difference"] = _checked("llama.cpp", llama_difference(bench, llama))
        checks["llama_greedy_agreement"] = greedy_agreement(bench, llama)
        rows += llama_rows(bench, llama)
    return rows + chat_rows(bench) + context_rows(bench) + int8_rows(bench), checks


def _over_http(bench: ServeBench, directory: str, texts: list[str]) -> list[ResultRow]:
    if importlib.util.find_spec("accelerate") is None:
        raise ServerError("it asks for the package accelerate")
    threads = bench.plan.threads
    with their_server(directory, threads) as theirs, our_server(directory, threads) as ours:
        return server_rows(bench, theirs, ours, texts)


def _llama(python: str, plan: ServePlan) -> LlamaWorker:
    try:
        return LlamaWorker(python, threads=plan.threads)
    except LlamaError as error:
        raise UserError(f"--llama {python}: {error}. Name an interpreter that has llama-cpp-python.") from None


def _worker(target: str, directory: str, plan: ServePlan) -> Worker:
    settings = waiting_settings() if target.startswith("ours") else {}  # as every command of ours begins
    return Worker(f"leyden.bench.serve.{target}", directory, threads=plan.threads, settings=settings)


def _write(plan: ServePlan, directory: Path, *, gguf: bool) -> list[str]:
    """The model, initial weights with an enlarged output projection, with a tokenizer of Python's own source; texts
    of the plan's prompt length for the servers.
    """
    source = ""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source += path.read_text(encoding="utf-8", errors="replace")
        if len(source) > _SOURCE_CHARACTERS:
            break
    tokenizer = Tokenizer.train([source], vocab_size=plan.model.vocab_size)
    model = HybridLM(plan.model, seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    save(model, tokenizer, directory, layout="transformers")
    config = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}  # theirs has no other way to go on
    (directory / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")
    if gguf:
        for dtype, kind in DTYPES.items():
            save(model.to(kind), None, _gguf(str(directory), dtype), layout="gguf")
    many, length = plan.http_streams * (plan.long_repeats + 1), plan.prompt
    tokens = tokenizer.encode(source)
    return [tokenizer.decode(tokens[i * length : (i + 1) * length]) for i in range(many)]


def _gguf(directory: str, dtype: str) -> Path:
    return Path(directory, f"{dtype}.gguf")


def _difference(bench: ServeBench, theirs: Worker) -> float:
    """Largest difference of both sides' float32 logits over 600 random tokens, as a share of the largest."""
    tokens = prompts(1, 600, bench.plan.model.vocab_size, 0)[0]
    expected, found = theirs.call("logits", tokens), bench.ours.call("logits", tokens)
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def _checked(name: str, difference: float) -> float:
    if not difference <= _TOLERANCE:
        raise RuntimeError(
            f"{name} and Leyden must compute the same before their speeds are compared; their logits differ by "
            f"{difference:.1e} of the largest, and {_TOLERANCE:.0e} is allowed"
        )
    return difference


def _turns(plan: ServePlan, llama: bool) -> int:
    """How often the bar moves: once a round of measurement, once a choice of variant."""
    short, long = plan.repeats + 1, plan.long_repeats + 1
    beside_llama = (len(plan.llama[0]) + 1) * (1 + long) + 2 * (1 + short)
    return short + (2 + long) + long + llama * beside_llama + long + 3 * long + 2 * long
