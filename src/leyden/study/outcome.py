"""What became of a point of a grid, and where it is kept.

A study's folder has ``points/KEY/`` for every point, KEY being the hash of its resolved recipe: ``recipe.toml`` (what
is run), ``run/`` (the run itself), ``log.txt`` (what it printed) and, once it has ended, ``result.json``.
"""

import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.evaluate.runs import is_finished
from leyden.study.grid import Point
from leyden.train import read_metrics

_END_SHARE = 0.1
_LOG_CHARACTERS = 600


@dataclass(frozen=True)
class Result:
    """Of one run.

    Attributes:
        key: of its point.
        status: ``done``; ``diverged``: its loss ended above where it began, or was no number; ``failed``: it ended
            without a model.
        reason: why it is not done, in words.
        seconds: that its processes ran, starts and evaluation included, over all attempts.
        starts: how often a process was started for it.
        loss: in nats a token, on held-out documents where the recipe has them, else over the last tenth of the steps;
            None where it is not done.
        train_loss: over the last tenth of the steps.
        tokens: that were trained on.
        training_seconds: of the steps alone: the tokens over the median rate.
        tokens_per_second: the median of the steps.
        code: the version of Leyden, and its commit where that is known.
    """

    key: str
    status: Literal["done", "diverged", "failed"]
    reason: str
    seconds: float
    starts: int
    loss: float | None
    train_loss: float | None
    tokens: int
    training_seconds: float | None
    tokens_per_second: float | None
    code: str


class PointFolder:
    """The files of one point."""

    def __init__(self, study: Path, point: Point) -> None:
        self.point = point
        self.place = study / "points" / point.key
        self.recipe, self.run = self.place / "recipe.toml", self.place / "run"
        self.log, self._result = self.place / "log.txt", self.place / "result.json"

    def write_recipe(self) -> None:
        """So that the run can be started."""
        with atomic_file(self.recipe) as part:
            part.write_text(self.point.recipe, encoding="utf-8")

    @property
    def result(self) -> Result | None:
        """What is known of it; None while it has not ended.

        Raises:
            UserError: the file is damaged.
        """
        try:
            return Result(**json.loads(self._result.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise UserError(
                f"{self._result} is no result of this version of Leyden; remove it, and the same command reads the "
                f"run anew."
            ) from None

    def forget(self) -> None:
        """Remove the result, so that the run is gone on with."""
        self._result.unlink(missing_ok=True)

    def conclude(self, seconds: float, starts: int, killed: str = "") -> Result:
        """Read what the run left, and keep it as the point's result.

        Args:
            seconds, starts: as in :class:`Result`.
            killed: how its process ended, where it was killed.
        """
        metrics = read_metrics(self.run / "metrics.jsonl")
        status, reason = self._judge(metrics, killed)
        train_loss = _end_loss(metrics) if status == "done" else None
        held_out = self._held_out() if status == "done" else None
        rates = [line["tokens_per_second"] for line in metrics if line.get("tokens_per_second")]
        result = Result(
            key=self.point.key,
            status=status,
            reason=reason,
            seconds=round(seconds, 3),
            starts=starts,
            loss=train_loss if held_out is None else held_out,
            train_loss=train_loss,
            tokens=metrics[-1]["tokens"] if metrics else 0,
            training_seconds=_training_seconds(metrics),
            tokens_per_second=statistics.median(rates) if rates else None,
            code=self._code(),
        )
        with atomic_file(self._result) as part:
            part.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
        return result

    def _judge(self, metrics: list[dict[str, Any]], killed: str) -> tuple[Literal["done", "diverged", "failed"], str]:
        losses = [line.get("loss") for line in metrics]
        if metrics and (metrics[-1].get("skipped") or losses[-1] is None or not math.isfinite(losses[-1])):
            return "diverged", f"the loss or gradient of step {metrics[-1]['step']} was no finite number"
        if not is_finished(self.run):
            return "failed", killed or self._last_words()
        first, last = losses[0], _end_loss(metrics)
        if first is not None and last is not None and last > first:
            return "diverged", f"the loss was {first:.3f} at first and {last:.3f} in the end"
        return "done", ""

    def _last_words(self) -> str:
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return "it left no log"
        _, error, words = text.rpartition("error: ")  # with which the command line ends for a user's mistake
        return " ".join((words if error else text)[-_LOG_CHARACTERS:].split()) or "it ended without a word"

    def _held_out(self) -> float | None:
        lines = [line for line in read_metrics(self.run / "eval.jsonl") if line.get("held_out_loss") is not None]
        return lines[-1]["held_out_loss"] if lines else None

    def _code(self) -> str:
        path = self.run / "environment.json"
        if not path.exists():
            return "unknown"
        return code_of(json.loads(path.read_text(encoding="utf-8")))


def code_of(environment: dict[str, Any]) -> str:
    """The version and commit in a run's ``environment.json``, in words."""
    return " at ".join(str(environment[key]) for key in ("leyden", "commit") if environment.get(key)) or "unknown"


def _end_loss(metrics: list[dict[str, Any]]) -> float | None:
    end = metrics[-max(1, round(len(metrics) * _END_SHARE)) :]
    losses = [line["loss"] for line in end if line.get("loss") is not None]
    return statistics.fmean(losses) if losses else None


def _training_seconds(metrics: list[dict[str, Any]]) -> float | None:
    """Tokens over the median rate: what the steps alone took, whatever the run was interrupted by."""
    rates = [line["tokens_per_second"] for line in metrics if line.get("tokens_per_second")]
    return metrics[-1]["tokens"] / statistics.median(rates) if rates else None
