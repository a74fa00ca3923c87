"""Carries out the points of a grid: each once, whatever is killed on the way."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leyden.core.errors import Interrupted
from leyden.core.lock import folder_lock, lock_holder
from leyden.core.log import Bar, progress, say
from leyden.evaluate.runs import is_finished
from leyden.study.executors import Executor, Job, Running
from leyden.study.grid import Point
from leyden.study.outcome import PointFolder, Result

MAX_STARTS = 4
"""Of one point in one launch: a process that was killed is started again, and goes on from its last checkpoint."""
_LOOK_SECONDS = 0.2


@dataclass
class _Attempt:
    """A point that is being run."""

    folder: PointFolder
    running: Running
    began: float
    seconds: float = 0.0
    starts: int = 1


class _Elsewhere:
    """A run that another process holds: of a launcher that was killed, whose jobs live on."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def poll(self) -> int | None:
        """It has no exit code; whether the run is finished tells."""
        return None if lock_holder(self._run) else 0

    def stop(self) -> None:
        """It was not started here, and ends by itself."""


def carry_out(
    points: Sequence[Point], study: Path, executor: Executor, *, threads: int, retry: bool = False
) -> dict[str, Result]:
    """Run every point that has no result yet, as many at once as ``executor`` has room for.

    Args:
        points: two with the same key are run once.
        study: the study's folder.
        executor: where.
        threads: of each run.
        retry: run those again that failed or diverged; a failed one goes on from its last checkpoint.

    Returns:
        The results of all points by key.

    Raises:
        Interrupted: Ctrl-C; the runs that were under way have saved their state.
        UserError: another launcher works in this folder.
    """
    with folder_lock(study, "carries out a study"):
        folders = {point.key: PointFolder(study, point) for point in points}
        known = {key: folder.result for key, folder in folders.items()}
        if retry:
            for key, result in known.items():
                if result is not None and result.status != "done":
                    folders[key].forget()
                    known[key] = None
        waiting = [folders[key] for key, result in known.items() if result is None]
        done = {key: result for key, result in known.items() if result is not None}
        if done:
            say(f"{len(done)} of {len(folders)} points have a result already and are not run again")
        if waiting:
            say(f"{len(waiting)} points to run on {executor.describe()}")
            done |= _Launcher(executor, threads).run(waiting)
        return done


class _Launcher:
    """The loop over jobs."""

    def __init__(self, executor: Executor, threads: int) -> None:
        self._executor, self._threads = executor, threads
        self._active: list[_Attempt] = []

    def run(self, waiting: list[PointFolder]) -> dict[str, Result]:
        """All of them, to their results."""
        done, queue = {}, list(waiting)
        with progress("points", len(queue), "points") as bar:
            try:
                while queue or self._active:
                    while queue and self._executor.has_room():
                        self._active.append(self._start(queue.pop(0)))
                    time.sleep(_LOOK_SECONDS)
                    for attempt in list(self._active):
                        self._look_at(attempt, done, bar)
            except KeyboardInterrupt:
                self._stop()
                raise Interrupted(
                    "Stopped; the runs that were under way have saved their state, and finished ones are kept. The "
                    "same command goes on."
                ) from None
        return done

    def _start(self, folder: PointFolder) -> _Attempt:
        folder.write_recipe()
        return _Attempt(folder, self._begin(folder), time.monotonic())

    def _begin(self, folder: PointFolder) -> Running:
        holder = lock_holder(folder.run)
        if holder is not None:
            say(f"{folder.point.name}: {holder}; its result is awaited")
            return _Elsewhere(folder.run)
        arguments = ("run", str(folder.recipe), "--dir", str(folder.run))
        return self._executor.start(Job(folder.point.key, arguments, folder.log, self._threads))

    def _look_at(self, attempt: _Attempt, done: dict[str, Result], bar: Bar) -> None:
        code = attempt.running.poll()
        if code is None:
            return
        attempt.seconds += time.monotonic() - attempt.began
        folder = attempt.folder
        vanished = code == 0 and not is_finished(folder.run)
        if (code < 0 or vanished) and attempt.starts < MAX_STARTS:
            say(f"{folder.point.name}: its process {_ending(code)}; it is started again")
            attempt.starts, attempt.began = attempt.starts + 1, time.monotonic()
            attempt.running = self._begin(folder)
            return
        killed = f"its process {_ending(code)}, {attempt.starts} times" if code < 0 else ""
        self._active.remove(attempt)
        result = folder.conclude(attempt.seconds, attempt.starts, killed)
        done[folder.point.key] = result
        if result.status != "done":
            say(f"{folder.point.name} {result.status}: {result.reason}")
        bar.advance(note=folder.point.name)

    def _stop(self) -> None:
        for attempt in self._active:
            attempt.running.stop()


def _ending(code: int) -> str:
    if code >= 0:
        return "ended without a model"
    return f"was killed by {signal.Signals(-code).name}"
