"""What goes on from a build (a run, an evaluation, another build) takes a whole one or none."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import leyden.data.builds.run
import leyden.data.builds.tokens
from leyden.core.errors import UserError
from leyden.core.lock import folder_lock
from leyden.data.builds import Build, BuildRecipe, run_build
from leyden.data.builds.tokens import held_out_documents, read_tokens
from leyden.data.builds.use import build_and_report, show_stats
from leyden.tokenizer import Tokenizer

WORDS = [
    "walnut",
    "juniper",
    "hornbeam",
    "sycamore",
    "rowan",
    "larch",
    "aspen",
    "chestnut",
    "spruce",
    "willow",
    "hawthorn",
    "alder",
]


class Killed(BaseException):
    """Stands for the end of the process."""


def _killed(*_: object, **__: object) -> None:
    raise Killed


def recipe(folder: Path, vocab_size: int = 300, share: float = 0.2, **tokens: object) -> BuildRecipe:
    return BuildRecipe.parse(
        {
            "build": {"workers": 1, "shard_bytes": 1024},
            "source": [{"name": "text", "paths": [str(folder)]}],
            "stage": [{"kind": "hold_out", "share": share}],
            "tokens": {"vocab_size": vocab_size, **tokens},
        },
        "test",
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files, which make three shards."""
    folder, generator = tmp_path_factory.mktemp("sources"), np.random.default_rng(0)
    for file in range(3):
        words = generator.integers(0, len(WORDS), (20, 12))
        rows = [{"text": " ".join(WORDS[word] for word in row)} for row in words]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def made(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished build, with tokens and documents held out."""
    return run_build(recipe(text), tmp_path_factory.mktemp("made") / "build").directory


@pytest.fixture
def built(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "build"))


def contents(directory: Path) -> dict[str, bytes]:
    """Every file that says the same whenever it is made."""
    files = (path for path in directory.rglob("*.*") if path.suffix != ".json" or path.name == "metadata.json")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.parametrize("vocab_size", [320, 280])
@pytest.mark.parametrize(
    "place", ["tokens.write_groups", "tokens.tokenise_files", "tokens.write_mark", "run.write_mark"]
)
def test_a_rebuild_that_was_killed_is_not_gone_on_from(
    built: Path, text: Path, monkeypatch: pytest.MonkeyPatch, vocab_size: int, place: str
) -> None:
    other = recipe(text, vocab_size, by="source")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(f"leyden.data.builds.{place}", _killed)
        run_build(other, built)
    for reader in (read_tokens, held_out_documents, Build.whole):
        with pytest.raises(UserError, match=r"has not finished; run it again: leyden data build .*recipe.toml --dir "):
            reader(built)
    run_build(other, built)
    tokens = read_tokens(built)
    assert tokens.groups["text"].tokenizer_fingerprint == Tokenizer.load(tokens.tokenizer).fingerprint
    assert tokens.groups["text"].vocab_size == vocab_size


def test_more_held_out_and_killed_after_that_stage(built: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(leyden.data.builds.run, "make_tokens", _killed)
        run_build(recipe(text, share=0.4), built)
    with pytest.raises(UserError, match="has not finished"):
        held_out_documents(built)


@pytest.mark.parametrize("place", ["tokens.write_mark", "tokens.tokenise_files"])
def test_back_to_the_first_recipe_after_a_killed_rebuild(
    built: Path, text: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    before = contents(built)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(f"leyden.data.builds.{place}", _killed)
        run_build(recipe(text, 320), built)
    run_build(recipe(text), built)
    assert contents(built) == before


def test_a_finished_build_stays_so_while_nothing_changes(built: Path, text: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*") if path.is_file()}
    run_build(recipe(text), built)
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*") if path.is_file()} == before


def test_a_build_is_moved_and_copied(built: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(built, tmp_path / "elsewhere" / "copy")
    shutil.rmtree(built)
    monkeypatch.chdir(tmp_path / "elsewhere")
    tokens = read_tokens(Path("copy"))
    assert Tokenizer.load(tokens.tokenizer).fingerprint == tokens.groups["all"].tokenizer_fingerprint
    assert held_out_documents(Path("copy"))
    before = contents(Path("copy"))
    run_build(recipe(text), Path("copy"))
    assert contents(Path("copy")) == before
    for path in Path("copy").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_a_tokenizer_that_was_named_goes_with_the_build(built: Path, text: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "tokenizer", tmp_path / "mine")
    mine = Tokenizer.load(tmp_path / "mine")
    run_build(recipe(text, tokenizer=str(tmp_path / "mine")), built)
    shutil.rmtree(tmp_path / "mine")
    tokens = read_tokens(built)
    assert (
        Tokenizer.load(tokens.tokenizer).fingerprint == mine.fingerprint == tokens.groups["all"].tokenizer_fingerprint
    )


def test_what_is_not_there_is_named_so(tmp_path: Path) -> None:
    for reader in (read_tokens, held_out_documents, Build.whole, Build.open):
        with pytest.raises(UserError, match="nowhere holds no build: it does not exist"):
            reader(tmp_path / "nowhere")
        with pytest.raises(UserError, match="holds no build"):
            reader(tmp_path)


def test_without_tokens(built: Path, text: Path) -> None:
    run_build(recipe(text).model_copy(update={"tokens": None}), built)
    with pytest.raises(UserError, match=r"has no tokens; give its recipe a \[tokens\] table"):
        read_tokens(built)
    assert not (built / "tokens").exists()
    assert not (built / "tokenizer").exists()


def test_looking_at_an_unfinished_build_says_so(
    built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    Build.open(built)
    assert "has not finished" not in capsys.readouterr().err
    (built / "finished.json").unlink()
    with folder_lock(built, "builds a corpus"):
        assert Build.open(built).stages()
    assert "has not finished (process" in capsys.readouterr().err
    with pytest.raises(UserError, match="has no report yet; run it again: leyden data build"):
        show_stats(built, as_json=True)


_HOLDS = """
import sys
from pathlib import Path
from leyden.core.lock import folder_lock
with folder_lock(Path(sys.argv[1]), "builds a corpus"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_never_build_in_one_directory(built: Path, text: Path) -> None:
    before = contents(built)
    command = [sys.executable, "-c", _HOLDS, str(built)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for build in (run_build, build_and_report):
            with pytest.raises(UserError, match=rf"is in use: process {other.pid} on .* builds a corpus there since"):
                build(recipe(text, 320), built)
        other.communicate("")
    assert contents(built) == before


def test_a_run_is_not_built_over(text: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run"):
        build_and_report(recipe(text), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.toml").exists()


def test_leftovers_of_killed_builds_go(built: Path, text: Path) -> None:
    before = sorted(built.rglob("*"))
    for name in (".tokenizer.part", "stages/.02-gone.gone", "tokens/.documents", "tokens/.all.part"):
        (built / name).mkdir()
        (built / name / "file").touch()
    for name in ("stages/00-read/documents/.x.parquet.part", "rejected/text-00009.jsonl", ".finished.json.part"):
        (built / name).parent.mkdir(exist_ok=True)
        (built / name).touch()
    (built / "stages/01-hold_out/documents/text-00009.parquet").touch()
    with contextlib.suppress(FileNotFoundError):
        (built / "finished.json").unlink()
    run_build(recipe(text), built)
    assert [path for path in sorted(built.rglob("*")) if path != built / "rejected"] == before
