"""Metric sinks besides ``metrics.jsonl``: TensorBoard and Weights & Biases.

Each is an extra package, imported when a recipe asks for it (``[train] sinks``).
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from leyden.core.errors import UserError

SinkName = Literal["tensorboard", "wandb"]

TENSORBOARD_DIRECTORY, WANDB_DIRECTORY = "tensorboard", "wandb"


class Sink(Protocol):
    """Anything that takes lines of metrics."""

    def append(self, record: Mapping[str, Any], /) -> None:
        """One optimizer step, as ``metrics.jsonl`` has it."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


@contextmanager
def open_sinks(
    names: Sequence[SinkName], run_dir: Path, last_step: int, recipe: Mapping[str, Any]
) -> Iterator[list[Sink]]:
    """The sinks of these names, closed at the end.

    Args:
        names: which.
        run_dir: the run's; files go below it, and its name is the run's.
        last_step: the step that the run goes on from; what a sink has of later ones is left out.
        recipe: of the run, as JSON values.

    Raises:
        UserError: the package of one is not installed.
    """
    require_sinks(names)
    with ExitStack() as stack:
        sinks = []
        for name in dict.fromkeys(names):
            sinks.append(_SINKS[name](run_dir, last_step, recipe))
            stack.callback(sinks[-1].close)
        yield sinks


def require_sinks(names: Sequence[SinkName]) -> None:
    """See to it that the packages of these sinks are installed.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"[train] sinks = ['{name}'] needs the package {name}: pip install {name}; or leave it out."
            )


class TensorBoard:
    """Event files in ``RUN/tensorboard``, for ``tensorboard --logdir RUN``."""

    def __init__(self, run_dir: Path, last_step: int, recipe: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        # A run that was killed has written steps that it now takes again.
        self._writer = SummaryWriter(str(run_dir / TENSORBOARD_DIRECTORY), purge_step=last_step + 1)

    def append(self, record: Mapping[str, Any], /) -> None:
        """Every number under its name."""
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; files in ``RUN/wandb``.

    Its own environment variables say where it goes: ``WANDB_MODE=offline`` sends nothing, ``WANDB_PROJECT`` names the
    project. A run that goes on has the id that it had.
    """

    def __init__(self, run_dir: Path, last_step: int, recipe: Mapping[str, Any]) -> None:
        wandb: Any = import_module("wandb")  # its types are there only where it is
        place = run_dir.resolve()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "leyden"),
            name=place.name,
            id=hashlib.sha256(str(place).encode()).hexdigest()[:16],
            dir=str(place),
            config=dict(recipe),
            resume="allow",
        )

    def append(self, record: Mapping[str, Any], /) -> None:
        """Every number under its name."""
        self._run.log(_numbers(record), step=record["step"])

    def close(self) -> None:
        """Send or write what is left."""
        self._run.finish()


_SINKS: dict[SinkName, Callable[[Path, int, Mapping[str, Any]], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, int | float) and name not in ("step",)}
