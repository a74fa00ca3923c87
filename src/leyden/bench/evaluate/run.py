"""``leyden bench eval``: multiple-choice questions and needles beside lm-eval's ``hf`` backend on transformers.

Both sides answer the same requests of the harness with the same weights in float32, each in a process of its own, in
turn. Theirs takes the fastest of several batch sizes and implementations of the experts. Before anything is timed both
must give the same log-probabilities and write the same texts.
"""

import importlib.util
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leyden import __version__
from leyden.bench.ab import ABBenchmark, FastestVariant
from leyden.bench.beside import beside_note, busy
from leyden.bench.cpu.run import bench_model
from leyden.bench.documents import documents_with_tokenizer
from leyden.bench.evaluate.plan import FULL, QUICK, EvalPlan, questions
from leyden.bench.result import BenchResult, ResultRow, show
from leyden.bench.worker import Worker
from leyden.checkpoint import save
from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.core.waiting import waiting_settings
from leyden.evaluate import machine

_TOLERANCE = 1e-3
"""Largest difference allowed between two log-probabilities of a continuation, in nats."""
_DOCUMENTS = 120
"""Of the standard library, for the tokenizer and the questions."""


def run_eval(*, quick: bool = False, beside: int = 0, output: Path | None = None) -> BenchResult:
    """Run the comparison and print its table; about 4 minutes on two cores.

    Args:
        quick: a small shape and few questions, to see that everything runs; its figures mean nothing.
        beside: busy processes that run along with both sides.
        output: where to write the result as JSON as well.

    Raises:
        UserError: transformers or lm-eval is not installed.
        RuntimeError: the sides differ, so that no figure would mean anything.
    """
    for module, name in (("transformers", "transformers"), ("lm_eval", "'leyden[lm-eval]'")):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"leyden bench eval compares with {module}; install it: pip install {name}.")
    plan = QUICK if quick else FULL
    documents, tokenizer = documents_with_tokenizer(_DOCUMENTS, plan.model.vocab_size)
    plan = replace(plan, model=plan.model.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    with tempfile.TemporaryDirectory() as parent, ExitStack() as stack:
        directory = str(Path(parent, "model"))
        save(bench_model(plan.model), tokenizer, directory, layout="transformers")
        stack.enter_context(busy(beside))
        bar = stack.enter_context(progress("bench eval", 2 * (1 + plan.repeats), "turns"))
        theirs = stack.enter_context(
            Worker("leyden.bench.evaluate.theirs:EvalTheirs", directory, plan.batches, threads=plan.threads)
        )
        ours = stack.enter_context(
            Worker("leyden.bench.evaluate.ours:EvalOurs", directory, threads=plan.threads, settings=waiting_settings())
        )
        benchmark = ABBenchmark(theirs, ours, bar)
        rows, checks = [], {"tolerance": _TOLERANCE}
        for measured in (_questions, _needles):
            row, check = measured(benchmark, plan, documents)
            rows.append(row)
            checks.update(check)
    result = BenchResult(
        name="eval",
        rows=rows,
        settings={**asdict(plan), "model": plan.model.model_dump(mode="json"), "quick": quick, "beside": beside},
        checks=checks,
        machine=machine(),
        versions={
            "leyden": __version__,
            "torch": torch.__version__,
            **{name: version(name) for name in ("transformers", "lm_eval")},
        },
        command="leyden bench eval" + " --quick" * quick + f" --beside {beside}" * (beside > 0),
        notes=["quick form: these figures mean nothing"] * quick + beside_note(beside),
    )
    show(result, output)
    return result


Measured = tuple[ResultRow, dict[str, float]]
"""A row, and how far both sides differed."""


def _questions(benchmark: ABBenchmark, plan: EvalPlan, documents: Sequence[str]) -> Measured:
    """Multiple choice.

    Raises:
        RuntimeError: two log-probabilities differ by more than the tolerance.
    """
    pairs, few = questions(documents, plan.rows), questions(documents, plan.tried, seed=1)
    choice = benchmark.fastest("likelihoods", lambda variant: ("seconds", "likelihoods", variant, few))
    expected = benchmark.theirs.call("likelihoods", choice.variant, few)
    found = benchmark.ours.call("likelihoods", few)
    difference = float(np.abs(np.array([x for x, _ in expected]) - np.array([x for x, _ in found])).max())
    if not difference <= _TOLERANCE:
        raise RuntimeError(
            "both sides must compute the same before their speeds are compared; their log-probabilities differ by "
            f"{difference:.1e}, and {_TOLERANCE:.0e} is allowed"
        )
    seconds = _seconds(benchmark, plan, choice, "likelihoods", pairs)
    row = _row(f"{plan.rows} questions of 4 answers, f32", "questions", plan.rows, seconds, choice)
    return row, {"largest_logprob_difference": difference}


def _needles(benchmark: ABBenchmark, plan: EvalPlan, documents: Sequence[str]) -> Measured:
    """The grid of the task ``niah``: a needle at each depth of each length, greedy answers.

    Raises:
        RuntimeError: the two sides write different texts.
    """
    grid = [benchmark.ours.call("needles", length, plan.depths) for length in plan.lengths]
    prompts, max_tokens = [prompt for some, _ in grid for prompt in some], grid[0][1]
    few, _ = benchmark.ours.call("needles", plan.lengths[0], 2, 1)
    choice = benchmark.fastest("generations", lambda variant: ("seconds", "generations", variant, few, max_tokens))
    expected = benchmark.theirs.call("generations", choice.variant, few, max_tokens)
    found = benchmark.ours.call("generations", few, max_tokens)
    if expected != found:
        raise RuntimeError(
            "both sides must compute the same before their speeds are compared; after the same prompts one writes "
            f"{expected!r} and the other {found!r}"
        )
    seconds = _seconds(benchmark, plan, choice, "generations", prompts, max_tokens)
    lengths = ", ".join(f"{length:,}" for length in plan.lengths)
    work = f"{len(prompts)} needles, {plan.depths} depths of {lengths}, f32"
    return _row(work, "needles", len(prompts), seconds, choice), {"different_texts": 0}


def _seconds(
    benchmark: ABBenchmark, plan: EvalPlan, choice: FastestVariant, work: str, *given: Any
) -> tuple[float, float]:
    """Of both sides, which have done a smaller piece of this work already."""
    theirs, ours = ("seconds", work, choice.variant, *given), ("seconds", work, *given)
    return benchmark.medians(theirs, ours, plan.repeats, unmeasured=0)


def _row(work: str, unit: str, count: int, seconds: tuple[float, float], choice: FastestVariant) -> ResultRow:
    theirs, ours = seconds
    batch, experts = choice.variant.split()
    slower = ", ".join(f"{v} {s:.1f} s" for v, s in choice.seconds.items() if v != choice.variant)
    return ResultRow(
        work=work,
        unit=f"{unit}/s",
        theirs=count / theirs,
        ours=count / ours,
        ratio=theirs / ours,
        at_least=5,
        how=f"all requests, tokenizing included; theirs is lm-eval's hf model with batches of {batch} "
        f"and '{experts}' experts, the fastest (tried: {slower or 'no other'})",
    )
