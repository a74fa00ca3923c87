"""Rejected documents: ``rejected/SHARD.jsonl`` names what could not be read, and why.

``stages/00-read/not_read.jsonl`` names what was found in folders and is not read, and ``not_read.json`` counts it, by
source and reason.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TextIO

from leyden.core.files import atomic_file, discard
from leyden.data.builds.directory import StageDirectory
from leyden.data.documents import Reject
from leyden.data.marks import read_mark, write_mark

_NAMES, _COUNTS = "not_read.jsonl", "not_read.json"
_NAMED = 10_000
"""Files of one reason that are named, of those that are passed over; all are counted."""


class RejectFile:
    """What was set aside: written as it comes, counted, and there once the block ends without an error.

    Args:
        path: of the file; there is none where nothing is set aside.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._lines: TextIO | None = None
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        discard(self._path)
        return self

    def append(self, reject: Reject) -> None:
        """Write one."""
        if self._lines is None:
            part = self._stack.enter_context(atomic_file(self._path))
            self._lines = self._stack.enter_context(part.open("w", encoding="utf-8"))
        self._lines.write(json.dumps(asdict(reject)) + "\n")
        self.counts[reject.reason] += reject.count

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def paths(self) -> list[Path]:
        """The file, once the block has ended, where there is one."""
        return [self._path] if self.counts else []


def write_not_read(place: StageDirectory, skipped: Mapping[str, Sequence[Reject]]) -> None:
    """Count and name what was passed over, of each source."""
    counts = {source: dict(Counter(reject.reason for reject in rejects)) for source, rejects in skipped.items()}
    before = read_mark(place.path / _COUNTS)
    if before is not None and before.facts == counts and before.fault() is None:
        return
    discard(place.path / _COUNTS)
    named: Counter[str] = Counter()
    with RejectFile(place.path / _NAMES) as file:
        for reject in itertools.chain.from_iterable(skipped.values()):
            named[reject.reason] += 1
            if named[reject.reason] <= _NAMED:
                file.append(reject)
    write_mark(place.path / _COUNTS, file.paths(), counts)


def not_read(place: StageDirectory) -> Counter[str]:
    """How many files and folders were passed over, by reason."""
    mark = read_mark(place.path / _COUNTS)
    return sum((Counter(of_source) for of_source in mark.facts.values()), Counter[str]()) if mark else Counter()


def reject_lines(place: StageDirectory) -> Iterator[dict[str, str]]:
    """What was set aside while it was read, then what was passed over."""
    for path in (*place.all_rejected(), place.path / _NAMES):
        if path.exists():
            with path.open(encoding="utf-8") as file:
                yield from map(json.loads, file)


def rejects_of(place: StageDirectory) -> Iterator[Reject]:
    """The same as objects."""
    for line in reject_lines(place):
        yield Reject(line["source"], line["place"], line["reason"], line["detail"])


def reading_line(place: StageDirectory) -> str:
    """What reading came to, in one line: documents, files, and what was not read with its reasons."""
    counts, skipped = place.total(), not_read(place)
    told = f"{counts.kept.documents:,} documents of {counts.files:,} files, {counts.kept.bytes / 1e6:,.1f} MB"
    if skipped:
        told += f"; {skipped.total():,} not read ({by_reason(skipped)})"
    if counts.rejected:
        told += f"; {sum(counts.rejected.values()):,} set aside ({by_reason(counts.rejected)})"
    return f"{place.name}: {told}"


def by_reason(reasons: Mapping[str, int] | Iterable[str], at_most: int | None = None) -> str:
    """Reasons in words, the commonest first: ``3 empty, 1 not UTF-8``."""
    order = sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0]))
    more = f", {len(order) - at_most} other reasons" if at_most is not None and len(order) > at_most else ""
    return ", ".join(f"{count:,} {reason}" for reason, count in order[:at_most]) + more
