"""A build: what goes through it, what is made again, and what survives an interruption."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from leyden.core.errors import UserError
from leyden.data.builds import Build, run_build
from leyden.data.builds.recipe import BuildRecipe, BuildSection, load_build_recipe
from leyden.data.documents import Documents
from leyden.data.engine import DataEngine
from leyden.data.readers import SourceSettings
from leyden.data.readers.settings import ReadSettings
from leyden.data.stage import Corpus, Stage


class DropEvery(Stage):
    """Drops the documents whose number, the last word of their text, is a multiple."""

    kind: Literal["drop_every"] = "drop_every"
    of: int = 3

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        multiple = [int(text.split()[-1]) % self.of == 0 for text in documents.texts()]
        return documents.drop([f"multiple of {self.of}" if is_one else None for is_one in multiple])


class Shout(Stage):
    """Upper case."""

    kind: Literal["shout"] = "shout"

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        return documents.rewrite(lambda texts: [text.upper() for text in texts])


class PanicError(BaseException):
    """As a library in Rust raises where it panics."""


PanicError.__name__ = "PanicException"


class Panic(Stage):
    """Drops the documents whose rows it is told, and panics on one text."""

    kind: Literal["panic"] = "panic"
    number: int

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        if any(int(text.split()[-1]) == self.number for text in documents.texts()):
            raise PanicError
        rows = range(documents.rows().start, documents.rows().stop)
        return documents.drop(["the second" if row == 1 else None for row in rows])


class KeepFirst(Stage):
    """Keeps the smallest id of the whole corpus and drops the others; counts how often it prepares."""

    WHOLE_CORPUS: ClassVar[bool] = True
    kind: Literal["keep_first"] = "keep_first"

    def prepare(self, corpus: Corpus) -> None:
        count = corpus.work.parent.parent / "prepared"
        count.write_text((count.read_text() if count.exists() else "") + "x")
        ids = [id_ for batch in corpus.batches() for id_ in batch.column("id")]
        (corpus.work / "first").write_text(min(ids))

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        first = (work / "first").read_text()
        return documents.drop([None if id_ == first else "not first" for id_ in documents.column("id")])


class FailOnce(Stage):
    """Fails at the third shard, until a file says otherwise."""

    kind: Literal["fail_once"] = "fail_once"
    flag: Path

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        if shard.endswith("00002") and not self.flag.exists():
            self.flag.touch()
            raise RuntimeError("planted")
        return documents


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twelve documents in four files."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in range(4):
        rows = [{"text": f"document number {3 * file + i}"} for i in range(3)]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(folder: Path, *stages: Stage, **build: object) -> BuildRecipe:
    """Each file a shard."""
    section = BuildSection.model_validate({"workers": 1, "shard_bytes": 1024, **build})
    return BuildRecipe(build=section, source=(SourceSettings(name="text", paths=(str(folder),)),), stage=stages)


def texts(build: Build) -> list[str]:
    """What is left, in a fixed order."""
    return sorted(text for batch in build.stages()[-1].read() for text in batch.texts())


def made(directory: Path) -> dict[str, int]:
    """When each shard was finished, by stage and name."""
    return {
        str(path.relative_to(directory)): path.stat().st_mtime_ns for path in directory.glob("stages/*/done/*.json")
    }


def test_counts_and_reasons(corpus: Path, tmp_path: Path) -> None:
    build = run_build(recipe(corpus, DropEvery(of=3), Shout()), tmp_path / "build")
    assert texts(build) == sorted(f"DOCUMENT NUMBER {n}" for n in range(12) if n % 3)
    totals = build.totals()
    assert list(totals) == ["00-read", "01-drop_every", "02-shout"]
    assert (totals["01-drop_every"].given.documents, totals["01-drop_every"].kept.documents) == (12, 8)
    assert {reason: tally.documents for reason, tally in totals["01-drop_every"].dropped.items()} == {
        "multiple of 3": 4
    }
    assert totals["00-read"].kept.bytes == sum(len(f"document number {n}") for n in range(12))
    assert totals["02-shout"].rewritten == 8
    dropped = [reason for batch in build.stages()[1].read(dropped=True) for reason in batch.column("reason")]
    assert dropped == ["multiple of 3"] * 4


def test_nothing_is_made_twice(corpus: Path, tmp_path: Path) -> None:
    settings = recipe(corpus, DropEvery(), Shout())
    run_build(settings, tmp_path / "build")
    before = made(tmp_path / "build")
    run_build(settings, tmp_path / "build")
    assert made(tmp_path / "build") == before


def test_a_changed_setting_runs_again_what_depends_on_it(corpus: Path, tmp_path: Path) -> None:
    run_build(recipe(corpus, Shout(), DropEvery(of=3), KeepFirst()), tmp_path / "build")
    before = made(tmp_path / "build")
    build = run_build(recipe(corpus, Shout(), DropEvery(of=2), KeepFirst()), tmp_path / "build")
    again = {name.split("/")[1] for name, at in made(tmp_path / "build").items() if before.get(name) != at}
    assert again == {"02-drop_every", "03-keep_first"}
    assert texts(build) == ["DOCUMENT NUMBER 1"]


def test_an_edited_file_runs_again_alone(corpus: Path, tmp_path: Path) -> None:
    run_build(recipe(corpus, Shout(), DropEvery()), tmp_path / "build")
    before = made(tmp_path / "build")
    (corpus / "1.jsonl").write_text('{"text": "another 100"}\n')
    build = run_build(recipe(corpus, Shout(), DropEvery()), tmp_path / "build")
    again = Counter(name.split("/")[1] for name, at in made(tmp_path / "build").items() if before.get(name) != at)
    assert again == {"00-read": 1, "01-shout": 1, "02-drop_every": 1}
    assert "ANOTHER 100" in texts(build)


def test_a_new_file_makes_the_whole_corpus_be_seen_again(corpus: Path, tmp_path: Path) -> None:
    run_build(recipe(corpus, KeepFirst()), tmp_path / "build")
    (corpus / "9.jsonl").write_text('{"text": "late 1"}\n')
    run_build(recipe(corpus, KeepFirst()), tmp_path / "build")
    run_build(recipe(corpus, KeepFirst()), tmp_path / "build")
    assert (tmp_path / "build" / "stages" / "prepared").read_text() == "xx"


def test_a_stage_that_is_gone_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    run_build(recipe(corpus, Shout(), DropEvery()), tmp_path / "build")
    build = run_build(recipe(corpus, DropEvery()), tmp_path / "build")
    assert [stage.name for stage in build.stages()] == ["00-read", "01-drop_every"]
    assert texts(build)[0].startswith("document")


def test_a_removed_file_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    run_build(recipe(corpus, Shout()), tmp_path / "build")
    (corpus / "3.jsonl").unlink()
    build = run_build(recipe(corpus, Shout()), tmp_path / "build")
    assert texts(build) == sorted(f"DOCUMENT NUMBER {n}" for n in range(9))


def test_after_a_failure_it_goes_on(corpus: Path, tmp_path: Path) -> None:
    settings = recipe(corpus, FailOnce(flag=tmp_path / "flag"), Shout())
    with pytest.raises(RuntimeError, match="planted"):
        run_build(settings, tmp_path / "build")
    before = made(tmp_path / "build")
    assert any("01-fail_once" in name for name in before)
    build = run_build(settings, tmp_path / "build")
    assert {name: at for name, at in made(tmp_path / "build").items() if name in before} == before
    assert len(texts(build)) == 12


def test_a_panic_of_a_library_costs_the_document(corpus: Path, tmp_path: Path) -> None:
    build = run_build(recipe(corpus, Panic(number=8)), tmp_path / "build")
    gone = [(row.column("reason"), row.texts()) for row in build.stages()[1].read(dropped=True)]
    reasons = Counter(reason for reasons, _ in gone for reason in reasons)
    assert reasons == {"panic: a library gave up": 1, "the second": 4}
    [text] = [t for reasons, texts in gone for r, t in zip(reasons, texts, strict=True) if "library" in r]
    assert int(text.split()[-1]) == 8
    with pytest.raises(UserError, match=r"gave up .* on 'shard'"):
        list(DataEngine().map(_panic, ["shard"]))


def test_an_engine_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"runner = \"ray\" needs the package ray.*pip install 'leyden\[ray\]'"):
        list(DataEngine(2, "ray").map(len, ["one", "two"]))


def test_an_extractor_that_is_not_installed_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"html.*trafilatura is not installed: pip install 'leyden\[trafilatura\]'"):
        ReadSettings.parse({"html": "trafilatura"}, "recipe.toml")


def _panic(item: str) -> None:
    raise PanicError


def test_workers_change_nothing(corpus: Path, tmp_path: Path) -> None:
    alone = run_build(recipe(corpus, DropEvery()), tmp_path / "alone")
    together = run_build(recipe(corpus, DropEvery(), workers=2), tmp_path / "together")
    assert texts(alone) == texts(together)


def test_shards_change_nothing(corpus: Path, tmp_path: Path) -> None:
    many = run_build(recipe(corpus, DropEvery(), KeepFirst()), tmp_path / "many")
    one = run_build(recipe(corpus, DropEvery(), KeepFirst(), shard_bytes=1 << 20), tmp_path / "one")
    assert len(one.stages()[0].shards()) == 1 < len(many.stages()[0].shards())
    assert texts(many) == texts(one)


def test_too_much_that_cannot_be_read_stops(corpus: Path, tmp_path: Path) -> None:
    (corpus / "bad.jsonl").write_text("neither\n" * 5)
    with pytest.raises(UserError, match=r"5 of 17 documents could not be read \(5 not JSON\).*max_rejected = 0.1"):
        run_build(recipe(corpus), tmp_path / "build")
    build = run_build(recipe(corpus, max_rejected=0.5), tmp_path / "build")
    assert build.totals()["00-read"].rejected == {"not JSON": 5}
    lines = [json.loads(line) for path in (tmp_path / "build" / "rejected").iterdir() for line in path.open()]
    assert {(line["place"], line["reason"]) for line in lines} == {(f"byte {8 * n}", "not JSON") for n in range(5)}


def test_a_stage_that_loses_documents_is_a_defect(corpus: Path, tmp_path: Path) -> None:
    class Loses(Stage):
        kind: Literal["loses"] = "loses"

        def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
            return Documents(documents.table.slice(1))

    with pytest.raises(RuntimeError, match="loses"):
        run_build(recipe(corpus, Loses()), tmp_path / "build")


_KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_build import DropEvery, Shout, recipe
from leyden.data.builds.use import build_and_report
build_and_report(recipe(Path({corpus!r}), DropEvery(), Shout(), workers=2, shard_bytes=1 << 19), Path({build!r}))
"""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Enough that a build takes a second or two."""
    folder = tmp_path / "large"
    folder.mkdir()
    for file in range(20):
        text = "word " * 100
        rows = [json.dumps({"text": f"{text}{1000 * file + i}"}) for i in range(1000)]
        (folder / f"{file:02d}.jsonl").write_text("\n".join(rows))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_it_goes_on_within_a_stage(large: Path, tmp_path: Path, number: signal.Signals) -> None:
    build = tmp_path / "build"
    program = _KILLED.format(tests=str(Path(__file__).parent), corpus=str(large), build=str(build))
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    while len(made(build)) < 25:  # in the middle of the second of three stages
        assert process.poll() is None, "ended before it was killed"
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=30)
    before = made(build)
    assert 25 <= len(before) < 60
    again = run_build(recipe(large, DropEvery(), Shout(), workers=2, shard_bytes=1 << 19), build)
    assert {name: at for name, at in made(build).items() if name in before} == before
    assert len(texts(again)) == sum(1 for n in range(20_000) if n % 3)
    assert not [path for path in build.rglob("*") if path.name.endswith(".part")]


def test_no_connection_is_made() -> None:
    program = """
import sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("CONNECTED", arguments, file=sys.stderr, flush=True)
sys.addaudithook(hook)
from leyden.data.engine import DataEngine
import os, time
assert dict(DataEngine(2).map(os.path.exists, ["/", "/nowhere"])) == {0: True, 1: False}
time.sleep(0.5)
"""
    environment = {key: value for key, value in os.environ.items() if key != "SCARF_NO_ANALYTICS"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    outside = [line for line in done.stderr.splitlines() if "CONNECTED" in line and "127.0.0.1" not in line]
    assert not [line for line in outside if re.search(r"\.(com|sh|io|net)\b|\d+\.\d+\.\d+\.\d+", line)]


def test_recipes_from_files(tmp_path: Path, corpus: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'[[source]]\nname = "a"\npaths = ["{corpus}"]\n[[stage]]\nkind = "lenght"\n')
    with pytest.raises(UserError, match=r"no kind 'lenght'; did you mean 'length'\?"):
        load_build_recipe(path)
    path.write_text(f'[[source]]\nname = "a"\npaths = ["{corpus}"]\n[[stage]]\nkind = "length"\nmin_wrods = 5\n')
    with pytest.raises(UserError, match="min_wrods"):
        load_build_recipe(path)
    path.write_text('[[source]]\nname = "a"\npaths = ["nowhere"]\n')
    with pytest.raises(UserError, match="nowhere"):
        run_build(load_build_recipe(path), tmp_path / "build")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes of the engine find this module, and so its stages."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    yield
