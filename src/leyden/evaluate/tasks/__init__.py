"""The tasks of ``leyden eval``: one module each, and the table of their names."""

from collections.abc import Callable

from leyden.core.errors import UserError, suggest
from leyden.evaluate.task import Options, Subject, Task
from leyden.evaluate.tasks.bits_per_byte import BitsPerByteTask
from leyden.evaluate.tasks.longbench_v2 import LongBenchV2
from leyden.evaluate.tasks.mr_niah import MrNiah
from leyden.evaluate.tasks.niah import Niah

TASKS: dict[str, Callable[[Options, Subject], Task]] = {
    "bits_per_byte": BitsPerByteTask,
    "longbench_v2": LongBenchV2,
    "mr_niah": MrNiah,
    "niah": Niah,
}
"""Every task by its name on the command line."""


def make_task(name: str, options: Options, subject: Subject) -> Task:
    """The task of this name, for a model and the user's options."""
    return TASKS[name](options, subject)


def check_names(names: list[str] | tuple[str, ...]) -> None:
    """Refuse names that are no tasks.

    Raises:
        UserError: the first such name.
    """
    for name in names:
        if name not in TASKS:
            raise UserError(f"task '{name}' is unknown{suggest(name, TASKS)}")
