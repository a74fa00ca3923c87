"""Where work runs: Daft spreads it over the processes of this machine, or over a Ray cluster.

A task is a function of one item (a shard, say) that is defined in a module; it reads and writes files, and returns a
small result. Which tasks there are, and which are done already, is the caller's business: there is no state here.
"""

import importlib.util
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

os.environ.setdefault("SCARF_NO_ANALYTICS", "1")  # else Daft tells an address of its import
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")  # the bars are ours

import daft

from leyden.core.errors import UserError
from leyden.core.panics import panics_are_user_errors

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class DataEngine:
    """How many tasks run at once, and where.

    Attributes:
        workers: processes; 1 runs the tasks in this one.
        runner: ``native`` for this machine, ``ray`` for the cluster that Ray finds.
    """

    workers: int = 1
    runner: Literal["native", "ray"] = "native"

    def map(self, task: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """Run ``task`` on every item; each result with its item's index, as they are ready.

        Args:
            task: picklable: a function of a module, or a ``functools.partial`` of one.
            items: picklable.

        Raises:
            UserError: the runner is ``ray``, which is not installed.
            Exception: what a task raised, with its traceback as a note; tasks that have not begun do not run. A panic
                of a library written in Rust is a UserError that names the item.
        """
        if (self.workers == 1 and self.runner == "native") or len(items) <= 1:
            for index, item in enumerate(items):
                yield index, _run(task, item)
            return
        if self.runner == "ray":
            if importlib.util.find_spec("ray") is None:
                raise UserError(
                    'runner = "ray" needs the package ray, on this machine and on those of the cluster: '
                    "pip install 'leyden[ray]'; or leave runner out, and the work runs on this machine."
                )
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells an address of its use
            daft.set_runner_ray(noop_if_initialized=True)
        call = daft.cls(_Task, use_process=True, max_concurrency=self.workers)(pickle.dumps(task))
        rows = {"index": list(range(len(items))), "item": [pickle.dumps(item) for item in items]}
        frame = daft.from_pydict(rows).into_batches(1).with_column("result", call.run(daft.col("item")))
        for row in frame.iter_rows():
            error, result = pickle.loads(row["result"])
            if error is not None:
                raise error
            yield row["index"], result


def _run(task: Callable[[Item], Result], item: Item) -> Result:
    message = f"A library gave up (it panicked; its message is above) on {item!r:.300}. Take that out, or report it."
    with panics_are_user_errors(message):
        return task(item)


class _Task:
    """A task in a process of Daft's; items and results travel as bytes."""

    def __init__(self, task: bytes) -> None:
        self._task: Callable[[Any], Any] = pickle.loads(task)

    @daft.method(return_dtype=daft.DataType.binary())
    def run(self, item: bytes) -> bytes:
        """The pickled error, if any, and result."""
        try:
            return pickle.dumps((None, _run(self._task, pickle.loads(item))))
        except Exception as error:
            trace = traceback.format_exc()
            error.add_note(f"in a worker process:\n{trace}")
            try:
                return pickle.dumps((error, None))
            except Exception:  # not every exception can travel
                return pickle.dumps((RuntimeError(trace), None))
