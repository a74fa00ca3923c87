"""The run behind ``leyden bench planted``: plant, build, look for every plant, tell."""

import json
import os
import random
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.dataset
from rich.console import Console
from rich.table import Table

from leyden.bench.data.planted import COPIES, Found, Planter, Plants, check
from leyden.core.environment import machine
from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import say
from leyden.data.builds import Build
from leyden.data.builds.recipe import BuildRecipe
from leyden.data.builds.use import build_and_report

_PROSE = re.compile(r"\.(txt|md|rst)$")
_COPIED_BYTES = (4_000, 100_000)
"""Of a file that is copied: enough words that one edit in a hundred leaves it a near-duplicate."""


def run_planted(
    roots: list[Path], directory: Path, *, megabytes: float = 500, workers: int = 0, output: Path | None = None
) -> bool:
    """Build a corpus of the text below ``roots`` with planted faults, and say which were found.

    Args:
        roots: folders of documentation and source.
        directory: of the build; ``planted/`` in it holds the faults.
        megabytes: of text that must have been read at least.
        workers: processes; 0: one a core.
        output: where to write the result as JSON as well.

    Returns:
        Whether every plant was found.

    Raises:
        UserError: the folders hold less text than asked for.
    """
    planted = directory / "planted"
    shutil.rmtree(planted, ignore_errors=True)
    planted.mkdir(parents=True)
    plants = Planter(planted).plant(_choose(roots))
    for path in planted.rglob("*"):
        os.utime(path, (0, 0))  # the same faults as before are no reason to build again
    started = time.perf_counter()
    build_and_report(BuildRecipe.parse(_recipe(roots, planted, workers), "the planted recipe"), directory)
    seconds = time.perf_counter() - started
    build = Build.open(directory)
    read = next(iter(build.totals().values())).kept
    if read.bytes < megabytes * 1e6:
        raise UserError(
            f"{', '.join(map(str, roots))} gave {read.bytes / 1e6:.0f} MB of text, less than the {megabytes:.0f} asked "
            "for; name more folders, or ask for less with --megabytes."
        )
    found = check(plants, _fates(build, plants, roots), list(_rejected(directory)))
    _print(found, build, seconds)
    if output is not None:
        facts = {
            "command": f"leyden bench planted {' '.join(root.name for root in roots)}",
            "machine": machine(),
            "megabytes": read.bytes / 1e6,
            "documents": read.documents,
            "seconds": seconds,
            "plants": [asdict(row) for row in found],
            "stages": {name: asdict(counts) for name, counts in build.totals().items()},
        }
        with atomic_file(output) as part:
            part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return all(row.found == row.planted for row in found)


def _choose(roots: list[Path]) -> list[Path]:
    """Files of prose to copy, the same ones for the same folders."""
    files = [path for root in roots for path in sorted(root.rglob("*")) if _PROSE.search(path.name)]
    chosen: list[Path] = []
    texts: set[str] = set()
    for path in random.Random(0).sample(files, len(files)):
        if len(chosen) == COPIES:
            return chosen
        if path.is_symlink() or not _COPIED_BYTES[0] <= path.stat().st_size <= _COPIED_BYTES[1]:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text not in texts and not any(part.startswith(".") for part in path.parts):
            texts.add(text)
            chosen.append(path)
    raise UserError(
        f"{', '.join(map(str, roots))} hold only {len(chosen)} files of prose to copy; {COPIES} are needed."
    )


def _recipe(roots: list[Path], planted: Path, workers: int) -> dict[str, Any]:
    prose = {"sources": ["planted"]}
    return {
        "build": {"max_rejected": 0.2, "workers": workers},
        "source": [
            {"name": "machine", "paths": [str(root) for root in roots]},
            {"name": "planted", "paths": [str(planted / "plants.jsonl")], "id": "name"},
            {"name": "broken", "paths": [str(planted / "broken")]},
        ],
        "stage": [
            {"kind": "unicode"},
            {"kind": "length", "min_words": 30},
            {"kind": "exact"},
            {"kind": "minhash", "threshold": 0.7, "verify": True},
            {"kind": "pii", **prose},
            {"kind": "language", "keep": ["en"], **prose},
            {"kind": "gopher_repetition", **prose},
            {"kind": "gopher_quality", **prose},
            {"kind": "c4", "line_ends": "", **prose},
            {"kind": "fineweb", **prose},
            {"kind": "contamination", "sets": [str(planted / "evaluation.jsonl")]},
        ],
    }


def _fates(build: Build, plants: Plants, roots: list[Path]) -> dict[str, dict[str, Any]]:
    """What became of every plant and original: why it was dropped (None where it was kept), and its text."""
    ids = {f"planted/{name}": name for names in plants.documents.values() for name in names}
    for path in map(Path, set(plants.originals.values())):
        root = next(root for root in roots if path.is_relative_to(root))
        ids[f"machine/{root.resolve().name}/{path.relative_to(root).as_posix()}"] = str(path)
    fates: dict[str, dict[str, Any]] = {}
    for stage in build.stages():
        for row in _rows(stage.path / "dropped", ids):
            fates[ids[row["id"]]] = {"reason": row["reason"], "text": row["text"]}
    for row in _rows(build.stages()[-1].path / "documents", ids):
        fates[ids[row["id"]]] = {"reason": None, "text": row["text"]}
    return fates


def _rows(folder: Path, ids: Iterable[str]) -> Iterator[dict[str, Any]]:
    dataset = pyarrow.dataset.dataset(folder, format="parquet")
    chosen = pyarrow.dataset.field("id").isin(list(ids))
    yield from dataset.to_table(columns=["id", "reason", "text"], filter=chosen).to_pylist()


def _rejected(directory: Path) -> Iterator[str]:
    for path in (directory / "rejected").glob("*.jsonl"):
        with path.open(encoding="utf-8") as file:
            yield from (Path(json.loads(line)["source"]).name for line in file)


def _print(found: list[Found], build: Build, seconds: float) -> None:
    table = Table("planted", "documents", "found", "how")
    for row in found:
        how = ", ".join(f"{count} {way}" for way, count in sorted(row.how.items(), key=lambda item: -item[1])[:3])
        table.add_row(row.kind, str(row.planted), str(row.found), how)
    Console(width=120).print(table)
    read = next(iter(build.totals().values())).kept
    say(f"{read.documents:,} documents, {read.bytes / 1e6:,.0f} MB in {seconds:,.0f} s")
