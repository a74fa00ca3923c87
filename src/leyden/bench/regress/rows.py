"""The rows of ``leyden bench regress``: work that both commits do, each by its own benchmarks' methods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from leyden.bench.ab import Call
from leyden.bench.cpu.plan import FULL, QUICK
from leyden.bench.serve.plan import FULL as SERVE
from leyden.bench.serve.plan import QUICK as SERVE_QUICK
from leyden.bench.work import SHORT, bench_dtype
from leyden.core.errors import UserError

CPU, SERVING, DATA = (
    "leyden.bench.cpu.ours:CpuOurs",
    "leyden.bench.serve.ours:ServeOurs",
    "leyden.bench.data.ours:DataOurs",
)

EARLIER_NAMES = {
    CPU: "leyden.bench.ours:Ours",
    SERVING: "leyden.bench.serve_ours:ServeOurs",
    DATA: "leyden.bench.data_ours:Ours",
}
"""What commits before these classes moved call them."""


@dataclass(frozen=True)
class RegressRow:
    """One row.

    Attributes:
        name: as the command line takes it.
        side: the class that does it, in either commit.
        call: the method and its arguments; of the number of the call, since an engine must not have seen a prompt.
        amount: how much one call does.
        unit: of ``amount`` a second.
    """

    name: str
    side: str
    call: Callable[[int], Call]
    amount: float
    unit: str = "tokens/s"

    def seconds(self, value: Any) -> float:
        """Of what the method returned: seconds, or several figures of which the first is the seconds."""
        return value[0] if isinstance(value, tuple) else value


def works(*, quick: bool, megabytes: float) -> list[RegressRow]:
    """All rows, those of one side together.

    Args:
        quick: the small shapes of the benchmarks' quick forms.
        megabytes: of the text that the rows of data work on.
    """
    return [*_cpu(quick), *_serving(quick), *_data(megabytes)]


def chosen(all_works: Sequence[RegressRow], names: Sequence[str]) -> list[RegressRow]:
    """Those that are named, whole or by how their name begins; all if none is.

    Raises:
        UserError: no row's name begins so.
    """
    for name in names:
        if not any(work.name.startswith(name) for work in all_works):
            known = ", ".join(work.name for work in all_works)
            raise UserError(f"leyden bench regress has no row {name!r}; there are: {known}.")
    return [work for work in all_works if not names or work.name.startswith(tuple(names))]


def _cpu(quick: bool) -> list[RegressRow]:
    plan, dtype = QUICK if quick else FULL, bench_dtype()
    rows: list[tuple[str, Call, int]] = []
    # Earlier commits know no other dtype for these than bfloat16.
    precision = () if dtype == "bfloat16" else (dtype,)
    for batch, length in plan.train:
        rows.append((f"train-{batch}x{length}", ("train", batch, length, *precision), batch * length))
    for length in plan.prefill:
        rows.append((f"prefill-{length}", ("prefill", dtype, length), length))
    for kind in dict.fromkeys(("float32", dtype)):
        rows.append((f"decode-{SHORT[kind]}", ("decode", kind, *plan.decode), plan.decode[1]))
    for tokens in plan.flat:
        shape = replace(plan.attention, tokens=tokens)
        rows.append((f"lightning-{tokens}", ("attention", shape, *precision), tokens))
    return [RegressRow(name, CPU, lambda number, call=call: call, amount) for name, call, amount in rows]


def _serving(quick: bool) -> list[RegressRow]:
    plan = SERVE_QUICK if quick else SERVE
    rows: list[tuple[str, Call, int]] = []
    dtype = bench_dtype()
    for streams in (1, plan.streams):
        for kind in (dtype, "int8"):
            rows.append((f"step-{kind}-{streams}", ("step", kind, streams, plan.prompt, plan.steps), streams))
    tokens = plan.streams * (plan.prompt + plan.new)
    rows.append((f"generate-{plan.streams}", ("generate", dtype, plan.streams, plan.prompt, plan.new), tokens))
    return [RegressRow(name, SERVING, lambda number, call=call: (*call, number), amount) for name, call, amount in rows]


def _data(megabytes: float) -> list[RegressRow]:
    names = ("rules", "deduplicate", "tokenise")
    return [RegressRow(name, DATA, lambda number, name=name: (name,), megabytes, "MB/s") for name in names]
