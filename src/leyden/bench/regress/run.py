"""``leyden bench regress``: this checkout beside another commit of it, row by row, in turns in one run.

Both commits do each row by the methods of their own benchmarks, in processes of their own. A third process, of this
checkout again, is asked in the same rounds: what differs between the two that are alike is the noise, and a row is
lost where it fell by more than that.
"""

import io
import random
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

import leyden
from leyden.bench.beside import beside_note, busy
from leyden.bench.cpu.plan import FULL, QUICK
from leyden.bench.cpu.run import bench_model
from leyden.bench.data.run import write_text
from leyden.bench.regress.rows import DATA, EARLIER_NAMES, RegressRow, chosen, works
from leyden.bench.result import BenchResult, ResultRow, show
from leyden.bench.worker import Worker, WorkerError
from leyden.checkpoint import save
from leyden.core.errors import UserError
from leyden.core.log import Bar, progress, say
from leyden.evaluate import machine
from leyden.tokenizer import Tokenizer

_ROOT = Path(leyden.__file__).parents[2]
_LEAST_SECONDS = 0.25
"""Of a turn: shorter calls are repeated, and their mean is taken."""
_SIDES = ("base", "this", "again")
_LEAST_NOISE = 0.01
_DRAWS = 2000
"""Of the bootstrap."""
_MEGABYTES = 4.0


def run_regress(
    base: str,
    names: Sequence[str] = (),
    *,
    rounds: int = 9,
    beside: int = 0,
    quick: bool = False,
    output: Path | None = None,
) -> BenchResult:
    """Measure the rows on both commits and print the table; ``missed`` rows fell by more than the noise.

    Args:
        base: the other commit, by any name that git knows.
        names: of the rows, whole or their beginnings; all of them if there is none.
        rounds: of turns, after one that is not counted.
        beside: busy processes that run along.
        quick: small shapes, to see that everything runs; its figures mean nothing.
        output: where to write the result as JSON as well.

    Raises:
        UserError: this is no checkout, git does not know ``base``, or there is no row of a name.
    """
    megabytes = 0.2 if quick else _MEGABYTES
    asked = chosen(works(quick=quick, megabytes=megabytes), names)
    rows: list[ResultRow] = []
    notes = ["quick form: these figures mean nothing"] * quick + beside_note(beside)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        commit = _unpack(base, Path(scratch, "checkout"))
        say(f"base: {commit}; against it this checkout, twice, so that the noise is known")
        _prepare(Path(scratch), {work.side for work in asked}, megabytes, quick=quick)
        stack.enter_context(busy(beside))
        bar = stack.enter_context(progress("bench regress", len(asked) * (rounds + 1), "turns"))
        for side, group in groupby(asked, key=lambda work: work.side):
            found, missing = _measure_side(side, list(group), Path(scratch), rounds, bar)
            rows += found
            notes += missing
    result = BenchResult(
        name="regress",
        rows=rows,
        settings={"quick": quick, "rounds": rounds, "threads": 2, "beside": beside, "base": commit},
        checks={},
        machine=machine(),
        versions={"leyden": leyden.__version__, "torch": torch.__version__},
        command=" ".join(["leyden bench regress --base", base, *names, *[f"--beside {beside}"] * (beside > 0)]),
        notes=[f"base: {commit}", *notes],
        sides=("base", "this"),
    )
    show(result, output)
    return result


def _unpack(base: str, folder: Path) -> str:
    """Write the sources of a commit below ``folder``; its short name and first line.

    Raises:
        UserError: this is no checkout, or git does not know the commit.
    """
    try:
        named = _git("log", "-1", "--format=%h %s", base, "--").decode().strip()
        archive = _git("archive", "--format=tar", base, "src")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", b"") or str(error).encode()
        raise UserError(
            f"leyden bench regress compares commits of a git checkout of Leyden; in {_ROOT}, git says of "
            f"{base!r}: {reason.decode(errors='replace').strip()}"
        ) from None
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return named


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(_ROOT), *arguments], check=True, capture_output=True).stdout


def _prepare(folder: Path, sides: set[str], megabytes: float, *, quick: bool) -> None:
    """What each side reads, in a folder of its own: a model, and text with a tokenizer."""
    one = folder / _SIDES[0]
    if sides - {DATA}:
        save(bench_model((QUICK if quick else FULL).model), None, one, layout="transformers")
    if DATA in sides:
        one.mkdir(exist_ok=True)
        _, texts = write_text((), megabytes, one)
        Tokenizer.train(texts, vocab_size=2000 if quick else 20_000, allow_smaller=True).save(one / "tokenizer")
    for other in _SIDES[1:]:
        shutil.copytree(one, folder / other)


def _measure_side(
    side: str, group: Sequence[RegressRow], folder: Path, rounds: int, bar: Bar
) -> tuple[list[ResultRow], list[str]]:
    """The rows of one class, and what is to be said of those that the base does not have."""
    rows, missing = [], []
    with ExitStack() as stack:
        try:
            workers = [
                stack.enter_context(Worker(_target(side, source), str(folder / name), threads=2, source=source))
                for name, source in zip(_SIDES, (folder / "checkout" / "src", None, None), strict=True)
            ]
        except WorkerError as error:
            bar.advance(len(group) * (rounds + 1), note=side)
            return [], [_missing(work, error) for work in group]
        for work in group:
            try:
                rows.append(_row(work, _take_turns(work, workers, rounds, bar)))
            except WorkerError as error:
                missing.append(_missing(work, error))
    return rows, missing


def _target(side: str, source: Path | None) -> str:
    """The class that does the work of ``side`` in the commit whose sources are at ``source``; None for this one."""
    module = side.partition(":")[0].replace(".", "/")
    return side if source is None or (source / f"{module}.py").exists() else EARLIER_NAMES[side]


def _take_turns(work: RegressRow, workers: Sequence[Worker], rounds: int, bar: Bar) -> list[list[float]]:
    """Seconds of each side, round by round. The order moves on by one a round: none always follows the same other.

    Raises:
        WorkerError: the base cannot do this work.
    """
    turns = []
    repeats, started = 1, time.monotonic()
    for number in range(rounds + 1):
        seconds = [0.0] * len(workers)
        for place in range(len(workers)):
            index = (number + place) % len(workers)
            seconds[index] = _seconds(work, workers[index], number, repeats)
        if number == 0:
            # What a method returns may be a part of its time alone, such as that of one step.
            whole = (time.monotonic() - started) / len(workers)
            repeats = max(1, min(20, round(_LEAST_SECONDS / max(whole, 1e-6))))
        turns.append(seconds)
        bar.advance(note=work.name)
    return turns[1:]


def _seconds(work: RegressRow, worker: Worker, number: int, repeats: int) -> float:
    """Mean seconds of a call; every call of a round has a number of its own, the same on all sides."""
    numbers = range(1000 * number, 1000 * number + repeats)
    return statistics.fmean(work.seconds(worker.call(*work.call(one))) for one in numbers)


def _missing(work: RegressRow, error: WorkerError) -> str:
    return f"{work.name}: not measured, the base cannot do it: {str(error).splitlines()[-1]}"


@dataclass(frozen=True)
class Comparison:
    """Two sides that took turns.

    Attributes:
        ratio: how many times as fast the second is, the median of the rounds.
        low, high: within which nine in ten such medians lie, by the bootstrap.
    """

    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> "Comparison":
        """Of the seconds of both, round by round."""
        ratios = [a / b for a, b in zip(first, second, strict=True)]
        draw = random.Random(0)
        medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(_DRAWS))
        return cls(statistics.median(ratios), medians[_DRAWS // 20], medians[-_DRAWS // 20])


def _row(work: RegressRow, turns: Sequence[Sequence[float]]) -> ResultRow:
    base, this, again = zip(*turns, strict=True)
    found, alike = Comparison.of(base, this), Comparison.of(again, this)
    noise = min(max(_LEAST_NOISE, alike.high - 1, 1 - alike.low, (found.high - found.low) / 2), 1.0)
    return ResultRow(
        work=work.name,
        unit=work.unit,
        theirs=work.amount / statistics.median(base),
        ours=work.amount / statistics.median(this),
        ratio=found.ratio,
        at_least=1 - noise,
        how=f"{found.low:.3f} to {found.high:.3f}; this beside itself {alike.low:.3f} to {alike.high:.3f}",
    )


def lost(result: BenchResult) -> list[str]:
    """The names of rows that fell by more than the noise."""
    return [row.work for row in result.rows if row.verdict == "missed"]
