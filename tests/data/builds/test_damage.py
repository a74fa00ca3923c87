"""One bit of any file of a build: what reads it afterwards makes it again or names it, and never goes on with it."""

import errno
import functools
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kills import contents, recipe, write_sources

import leyden.data.parquet
from leyden.core.errors import UserError
from leyden.data.builds import Build, BuildRecipe, run_build
from leyden.data.builds.tokens import held_out_documents, read_tokens
from leyden.data.documents import Document, Documents
from leyden.data.parquet import DocumentsWriter
from leyden.tokenizer import Tokenizer

_NOT_READ_BACK = ("recipe.toml", "report/")
"""What a build leaves for people; it is written anew at every run."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "sources"
    write_sources(folder)
    return folder


@pytest.fixture(scope="module")
def short(sources: Path) -> BuildRecipe:
    """Few stages: one that drops by itself, one that sees the whole corpus, and tokens."""
    return recipe(sources, [{"kind": "exact"}, {"kind": "hold_out", "share": 0.2}])


@pytest.fixture(scope="module")
def made(short: BuildRecipe, sources: Path) -> Path:
    """It, finished."""
    return run_build(short, sources.parent / "made").directory


def files_of(directory: Path) -> list[Path]:
    """One file of each kind: those whose paths differ in digits alone are of one kind."""
    kinds: dict[str, Path] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_file() and path.stat().st_size and not name.startswith(_NOT_READ_BACK):
            kinds.setdefault("".join("#" if letter.isdigit() else letter for letter in name), path)
    return list(kinds.values())


def flip(path: Path, generator: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[int(generator.integers(len(content)))] ^= 1 << int(generator.integers(8))
    path.write_bytes(content)


def all_that_is_read(directory: Path) -> object:
    """What a run, an evaluation and a person who looks take of a build; None where they are refused."""
    found: list[object] = []
    for read in (_tokens, held_out_documents, _looked_at):
        try:
            found.append(read(directory))
        except UserError as error:
            assert str(directory) in str(error)
            found.append(None)
    return found


def _tokens(directory: Path) -> object:
    tokens = read_tokens(directory)
    fingerprint = Tokenizer.load(tokens.tokenizer).fingerprint
    assert all(shards.tokenizer_fingerprint == fingerprint for shards in tokens.groups.values())
    return {
        name: [(shards.document(i).tolist(), shards.id(i), shards.source(i)) for i in range(shards.num_documents)]
        for name, shards in tokens.groups.items()
    }


def _looked_at(directory: Path) -> object:
    stages = Build.open(directory).stages()
    return [
        [batch.table.to_pylist() for dropped in (False, True) for batch in stage.read(dropped=dropped)]
        for stage in stages
    ]


def check_damage(settings: BuildRecipe, made: Path, path: Path, copy: Path, generator: np.random.Generator) -> None:
    """Damage one file of a copy of the build; read it, build again, and compare with the build that was not damaged."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(made, copy)
    flip(copy / path.relative_to(made), generator)
    for before, now in zip(all_that_is_read(made), all_that_is_read(copy), strict=True):
        assert now in (None, before), f"{path}: read as other data"
    run_build(settings, copy)
    whole, again = contents(made), contents(copy)
    others = {name for name in whole.keys() | again.keys() if whole.get(name) != again.get(name)}
    # What no stage was to be run on was not read, nor the marks of what was not made again.
    unread = {str(path.relative_to(made))} if "documents/" in str(path) or path.name == "shard.json" else set()
    assert others <= unread, f"{path}: {others}"
    # With the later stages gone they are read, and nothing of the damage is in what comes of them.
    for later in sorted((copy / "stages").iterdir())[-1:] if others else ():
        shutil.rmtree(later)
        run_build(settings, copy)
        again = contents(copy)
        assert {name for name in whole if whole[name] != again.get(name)} <= unread


def test_a_bit_of_some_kinds_of_files(short: BuildRecipe, made: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for path in files_of(made)[::8]:
        check_damage(short, made, path, tmp_path / "copy", generator)


@pytest.mark.slow
def test_a_bit_of_all_kinds_of_files(sources: Path, tmp_path: Path) -> None:
    made = run_build(recipe(sources), tmp_path / "made").directory
    generator = np.random.default_rng(1)
    for path in files_of(made):
        check_damage(recipe(sources), made, path, tmp_path / "copy", generator)


def test_what_is_between_stages_is_made_again(short: BuildRecipe, made: Path, tmp_path: Path) -> None:
    """Damaged, cut short, or gone, with all that comes after it to be made again; or the mark without its keys."""
    whole, generator = contents(made), np.random.default_rng(2)
    place = Path("stages", "01-exact")
    for damage in ("flip", "cut", "gone", "mark"):
        copy = Path(shutil.copytree(made, tmp_path / damage))
        shutil.rmtree(copy / "stages" / "02-hold_out")
        path = next((copy / place / ("done" if damage == "mark" else "documents")).iterdir())
        if damage == "flip":
            flip(path, generator)
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-100])
        elif damage == "gone":
            path.unlink()
        else:
            path.write_text(path.read_text().replace("fingerprint", "fingerprunt"))
        run_build(short, copy)
        assert contents(copy) == whole


def test_a_full_disk_at_the_footer_leaves_no_torn_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each size at which a file can end: the writer says so in one paragraph, and what was there stays."""
    batch = Documents.of([Document(str(n), f"text {n} " * 20, "memory") for n in range(50)])
    with DocumentsWriter(tmp_path / "x.parquet") as writer:
        writer.write(batch)
    before, size = (tmp_path / "x.parquet").read_bytes(), (tmp_path / "x.parquet").stat().st_size
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for left in (*range(0, size, size // 7), size - 1):
        with (
            monkeypatch.context() as patch,
            pytest.raises(UserError, match=r"x\.parquet could not be written: the disk"),
        ):
            patch.setattr(leyden.data.parquet.pq, "ParquetWriter", functools.partial(_Limited, left, full))
            with DocumentsWriter(tmp_path / "x.parquet") as writer:
                writer.write(batch)
        assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]
        assert (tmp_path / "x.parquet").read_bytes() == before


class _Limited(pq.ParquetWriter):
    """Writes to a disk with so many bytes left."""

    def __init__(self, left: int, full: OSError, path: Path, schema: pa.Schema, **settings: object) -> None:
        self._disk = _Disk(path, left, full)
        super().__init__(pa.PythonFile(self._disk, mode="w"), schema, **settings)


class _Disk(io.FileIO):
    def __init__(self, path: Path, left: int, full: OSError) -> None:
        super().__init__(path, "wb")
        self._left, self._full = left, full

    def write(self, data: Any) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise self._full
        return super().write(data)
