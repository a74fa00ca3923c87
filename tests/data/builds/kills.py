"""A program that builds, is killed at changes of files, builds again, and compares: ``kills.py DIR STEP [NUMBER]``.

Each attempt is a fork of this process, which itself never builds, so that threads of libraries are never forked. A kill
is an exit without any clean-up, just before the file system is changed. Changes that differ in digits alone are of one
class; the kills are at the first change of every ``STEP``-th class.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from leyden.data.builds import BuildRecipe, run_build
from leyden.data.builds.stages import KINDS, stage_class

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.truncate")
_WORDS = [f"{a}a{b}o{c}" for a, b, c in zip("bcdfghklmnprst", "klmnprstbcdfgh", "tsrpnmlkhgfdcb", strict=True)]


def write_sources(folder: Path) -> None:
    """Three shards of lines of words, with copies and near-copies of each other."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    lines = [" ".join(_WORDS[word] for word in row) for row in generator.integers(0, len(_WORDS), (40, 12))]
    for file in range(3):
        texts = ["\n".join(lines[i] for i in row) for row in generator.integers(0, 40, (14, 4))]
        texts += [texts[0], texts[1] + " oak", "\n".join(lines[:4]), "\n".join(lines[:4]) + " elm"]
        rows = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{file}.jsonl").write_text("".join([*rows, "{broken\n"]))
    (folder / "good.txt").write_text("\n\n".join(lines))


def recipe(folder: Path, stages: list[dict[str, Any]] | None = None) -> BuildRecipe:
    """Every kind of stage that keeps files and asks no model, and tokens by group."""
    fast = {"dim": 4, "buckets": 64, "epochs": 2, "min_count": 1}
    kinds = [
        {"kind": "exact"},
        {"kind": "bloom"},
        {"kind": "minhash", "threshold": 0.6, "num_hashes": 16, "verify": True, "evidence_documents": 4},
        {"kind": "paragraphs", "min_left_characters": 1},
        {"kind": "substrings", "length": 12, "min_left_characters": 1},
        {"kind": "perplexity", "reference": [str(folder / "good.txt")], "order": 2},
        {"kind": "classifier", "positives": [str(folder / "0.jsonl")], "keep": 0.9, "classifier": fast},
        {"kind": "hold_out", "share": 0.1},
        {"kind": "mixture", "scores": ["classifier"], "category": None, "tokens": 500},
    ]
    data = {
        "build": {"workers": 1, "shard_bytes": 1 << 12, "max_rejected": 0.5},
        "source": [{"name": "text", "paths": [str(folder / f"{file}.jsonl") for file in range(3)]}],
        "stage": kinds if stages is None else stages,
        "tokens": {"vocab_size": 270, "by": "source" if stages is not None else "group"},
    }
    return BuildRecipe.parse(data, "kills")


def contents(directory: Path) -> dict[str, object]:
    """Every file of a build; of marks what does not tell the time."""
    found: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(directory))
            found[name] = path.read_bytes()
            if path.parent.name == "done" or path.name == "prepared":
                found[name] = _timeless(json.loads(path.read_bytes()))
    return found


def _timeless(mark: dict[str, Any]) -> object:
    mark["facts"].pop("seconds", None)
    mark["facts"].get("counts", {}).pop("seconds", None)
    return mark["facts"], mark["files"]


def forked(task: Callable[[], object]) -> int:
    """The exit code of a process that runs ``task``."""
    process = os.fork()
    if not process:
        try:
            task()
        except BaseException as error:
            print(type(error).__name__, str(error)[:2000], file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def hooked(see: Callable[[str], None], task: Callable[[], object]) -> None:
    """Run ``task``; ``see`` is told of each change before it is made."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) and not str(path).startswith("/dev"):
                see(f"open {path}")
        elif event in _CHANGES:
            see(f"{event} {arguments[0]}")
        elif event == "ctypes.dlsym" and arguments[1] == "renameat2":
            see("exchange")

    sys.addaudithook(hook)
    task()


def changes_of(task: Callable[[], object], record: Path) -> list[str]:
    """The changes that ``task`` makes."""
    seen: list[str] = []

    def run() -> None:
        hooked(seen.append, task)
        record.write_text("\n".join(seen))

    assert forked(run) == 0
    return record.read_text().split("\n")[:-1]  # the last is of the record


def killed_at(number: int, task: Callable[[], object]) -> int:
    """Run ``task`` in a process that ends before its change ``number``."""
    left = [number]

    def see(_: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            os._exit(137)

    return forked(lambda: hooked(see, task))


def main(root: Path, step: int, first: int = 0) -> None:
    """Build, kill, build again, compare; first from nothing, then from a build of other settings."""
    os.fsync = lambda descriptor: None  # programs are killed here, not machines
    for kind in KINDS:
        stage_class(kind)  # what is imported once here is not imported in each fork
    write_sources(root / "sources")
    settings = recipe(root / "sources")
    place = root / "build"

    def build() -> None:
        run_build(settings, place)

    def prepare(older: Path | None) -> None:
        shutil.rmtree(place, ignore_errors=True)
        if older is not None:
            shutil.copytree(older, place)

    other = recipe(root / "sources", [{"kind": "paragraphs"}, {"kind": "exact", "normalise": "none"}])
    assert forked(lambda: run_build(other, root / "older")) == 0
    for older in (None, root / "older"):
        prepare(older)
        changes = changes_of(build, root / "changes")
        whole = contents(place)
        classes: dict[str, int] = {}
        for number, change in enumerate(changes):
            classes.setdefault(re.sub(r"\d+", "#", change.replace(str(root), "")), number)
        for number in list(classes.values())[first::step]:
            prepare(older)
            code = killed_at(number, build)
            assert code == 137, f"{changes[number]}: ended with {code}"
            assert forked(build) == 0, f"killed before {changes[number]}: it does not go on"
            again = contents(place)
            other_files = sorted(name for name in whole.keys() | again.keys() if whole.get(name) != again.get(name))
            assert not other_files, f"killed before {changes[number]}: {other_files}"
        print(f"{len(changes)} changes in {len(classes)} classes", flush=True)
        first //= 2


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
