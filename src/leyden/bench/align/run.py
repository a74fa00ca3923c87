"""``leyden bench align``: fine-tuning, DPO and GRPO beside TRL's trainers on transformers' MiniMax.

Both sides begin with the same weights and read the same chats, pairs and prompts, in turn. Ours is the command ``leyden
run``; theirs the fastest of the variants that it offers, in a process of its own. Before anything is timed both must
compute the same logits. Of each turn the first step is left out, and so is what both compute of the reference of DPO
before the first step.
"""

import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from leyden import __version__
from leyden.bench.ab import FastestVariant
from leyden.bench.align.plan import FULL, QUICK, WORKS, AlignPlan, Turn, Work, chats, pairs, prompts
from leyden.bench.beside import beside_note, busy
from leyden.bench.cpu.run import bench_model
from leyden.bench.documents import documents_with_tokenizer
from leyden.bench.result import BenchResult, ResultRow, show
from leyden.bench.work import SHORT, bench_dtype, compare_logits, random_tokens
from leyden.bench.worker import Worker
from leyden.checkpoint import load, save
from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.evaluate import machine

_DOCUMENTS = 120
"""Of the standard library, for the tokenizer and the rows."""
_ROWS: Mapping[Work, Callable[[Sequence[str], AlignPlan], list[dict[str, str]]]] = {
    "sft": chats,
    "dpo": pairs,
    "grpo": prompts,
}


def run_align(*, quick: bool = False, beside: int = 0, output: Path | None = None) -> BenchResult:
    """Run the comparison and print its table; about 5 minutes on two cores.

    Args:
        quick: a small shape and few rows, to see that everything runs; its figures mean nothing.
        beside: busy processes that run along with both sides.
        output: where to write the result as JSON as well.

    Raises:
        UserError: TRL is not installed.
        RuntimeError: the sides differ, so that no figure would mean anything.
    """
    for module in ("transformers", "trl"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"leyden bench align compares with {module}; install it: pip install {module}.")
    plan = replace(QUICK if quick else FULL, dtype=bench_dtype())
    documents, tokenizer = documents_with_tokenizer(_DOCUMENTS, plan.model.vocab_size)
    plan = replace(plan, model=plan.model.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    with tempfile.TemporaryDirectory() as parent, ExitStack() as stack:
        directory = str(Path(parent, "model"))
        save(bench_model(plan.model), tokenizer, directory, layout="transformers")
        for work, rows_of in _ROWS.items():
            lines = [json.dumps(row) + "\n" for row in rows_of(documents, plan)]
            Path(parent, f"{work}.jsonl").write_text("".join(lines), encoding="utf-8")
        stack.enter_context(busy(beside))
        bar = stack.enter_context(progress("bench align", len(WORKS), "kinds of work"))
        given = (directory, parent, plan)
        theirs, ours = (
            stack.enter_context(Worker(f"leyden.bench.align.{side}:Align{side.capitalize()}", *given, threads=threads))
            for side, threads in (("theirs", plan.threads), ("ours", 1))
        )
        checks = _compare_logits(theirs, directory, plan)
        rows: list[ResultRow] = []
        learning = _fastest(theirs, "sft", plan)  # of DPO, too, which computes the same with other losses
        for work in WORKS:
            choice = _fastest(theirs, work, plan) if work == "grpo" else learning
            rows += _measure(theirs, ours, work, plan, choice, given)
            bar.advance(note=work)
        versions = theirs.call("versions")
    result = BenchResult(
        name="align",
        rows=rows,
        settings={**asdict(plan), "model": plan.model.model_dump(mode="json"), "quick": quick, "beside": beside},
        checks=checks,
        machine=machine(),
        versions={"leyden": __version__, "torch": torch.__version__, **versions},
        command="leyden bench align" + " --quick" * quick + f" --beside {beside}" * (beside > 0),
        notes=["quick form: these figures mean nothing"] * quick + beside_note(beside),
    )
    show(result, output)
    return result


def _fastest(theirs: Worker, work: Work, plan: AlignPlan) -> FastestVariant:
    """Their variant that does a step soonest."""
    variants = theirs.call("variants", work)
    seconds = {variant: theirs.call("seconds", work, variant, plan.tried_steps) for variant in variants}
    return FastestVariant(min(seconds, key=seconds.__getitem__), seconds)


def _measure(
    theirs: Worker, ours: Worker, work: Work, plan: AlignPlan, choice: FastestVariant, given: tuple[Any, ...]
) -> list[ResultRow]:
    """The rows of one kind of work; of memory, each side's process is that which did it alone."""
    them: list[Turn] = []
    us: list[Turn] = []
    for number in range(plan.repeats):
        if number:
            them.append(theirs.call("turn", work, choice.variant, plan.steps[work]))
        else:  # in a process of its own, whose memory nothing else has raised
            with Worker("leyden.bench.align.theirs:AlignTheirs", *given, threads=plan.threads) as fresh:
                them.append(fresh.call("turn", work, choice.variant, plan.steps[work]))
        us.append(ours.call("turn", work, plan.steps[work]))
    precision = SHORT[plan.dtype]
    rows = {
        "sft": f"fine-tuning, {plan.rows['sft']} chats a step, {precision}",
        "dpo": f"DPO, {plan.rows['dpo']} pairs a step, {precision}",
        "grpo": f"GRPO step, {plan.rows['grpo']} prompts x {plan.group} x {plan.new_tokens} tokens, {precision}",
    }
    unit = {"sft": "answer tokens/s", "dpo": "pairs/s", "grpo": "completions/s"}[work]
    goal = 3.0 if work == "grpo" else 2.5
    found = [_row(rows[work], unit, _per_second(them), _per_second(us), goal, choice)]
    if work == "grpo":
        drawn = [[turn.rollout_tokens_per_second for turn in side] for side in (them, us)]
        found.append(_row(f"its rollouts, {precision}", "tokens/s", drawn[0], drawn[1], 4.0, None))
    first, second = them[0].peak_bytes / 1e6, max(turn.peak_bytes for turn in us) / 1e6
    memory = ResultRow(f"peak memory of it, {work}", "MB", first, second, first / second, at_least=1.0)
    return [*found, memory]


def _per_second(turns: Sequence[Turn]) -> list[float]:
    return [turn.learned_per_second for turn in turns]


def _row(
    work: str, unit: str, theirs: Sequence[float], ours: Sequence[float], goal: float, choice: FastestVariant | None
) -> ResultRow:
    first, second = median(theirs), median(ours)
    how = "" if choice is None else f"{choice}; theirs pads a batch, as TRL does for this model; ours packs it"
    return ResultRow(work, unit, first, second, second / first, at_least=goal, how=how)


def _compare_logits(theirs: Worker, directory: str, plan: AlignPlan) -> dict[str, float]:
    """See :func:`leyden.bench.work.compare_logits`, over 300 random tokens."""
    tokens = random_tokens(1, 300, plan.model.vocab_size)
    with torch.inference_mode():
        found = load(directory, dtype=torch.float32)[0](tokens)[0].numpy()
    return compare_logits(theirs.call("logits", tokens[0].tolist()), found)
