"""The tasks of ``leyden eval``: one module each, and the table of their names."""

import importlib.util
from collections.abc import Callable

from leyden.core.errors import UserError, suggest
from leyden.evaluate.task import Options, Subject, Task
from leyden.evaluate.tasks.bits_per_byte import BitsPerByteTask
from leyden.evaluate.tasks.longbench_v2 import LongBenchV2
from leyden.evaluate.tasks.mqar import Mqar
from leyden.evaluate.tasks.mr_niah import MrNiah
from leyden.evaluate.tasks.niah import Niah
from leyden.evaluate.tasks.perplexity_by_position import PerplexityByPosition
from leyden.evaluate.tasks.ruler import Ruler

TASKS: dict[str, Callable[[Options, Subject], Task]] = {
    "bits_per_byte": BitsPerByteTask,
    "longbench_v2": LongBenchV2,
    "mqar": Mqar,
    "mr_niah": MrNiah,
    "niah": Niah,
    "perplexity_by_position": PerplexityByPosition,
    "ruler": Ruler,
}
"""Every task by its name on the command line; beside these, :data:`HARNESS` and the name of a task of lm-eval's."""
HARNESS = "lm-eval:"


def make_task(name: str, options: Options, subject: Subject) -> Task:
    """The task of this name, for a model and the user's options."""
    if name.startswith(HARNESS):
        from leyden.evaluate.harness.task import HarnessTask

        return HarnessTask(name, options, subject)
    return TASKS[name](options, subject)


def check_names(names: list[str] | tuple[str, ...]) -> None:
    """Refuse names that are no tasks.

    Raises:
        UserError: the first such name, or lm-eval is not installed and a task of it is asked for.
    """
    for name in names:
        if name.startswith(HARNESS):
            if importlib.util.find_spec("lm_eval") is None:
                raise UserError(
                    f"{name} needs lm-eval (lm-evaluation-harness); install it: pip install 'leyden[lm-eval]'."
                )
        elif name not in TASKS:
            raise UserError(f"task '{name}' is unknown{suggest(name, TASKS)}")
