"""The shipped build of text: duplicates go, the held-out part does not move, and the report adds up."""

import hashlib
import tomllib
from pathlib import Path

import pytest

from leyden.core.errors import UserError
from leyden.data import Document
from leyden.data.builds import run_build
from leyden.data.builds.text import TEXT_BUILD, TextReport, documents_of, text_recipe


def _write(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04d}.txt").write_text(text)
    return folder


def _built(
    paths: list[Path], directory: Path, fraction: float = 0.02
) -> tuple[list[Document], list[Document], TextReport]:
    """What is trained on, what is held out, and the report."""
    build = run_build(text_recipe(paths, held_out_fraction=fraction), directory)
    last = build.stages()[-1]
    return list(documents_of(last)), list(documents_of(last, dropped=True)), TextReport.of(build)


def test_duplicates_go_and_the_report_adds_up(tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", [f"text {number} é" for number in range(200)] + ["text 5 é", "text 6 é", ""])
    (folder / "z.png").write_bytes(b"")
    train, held_out, report = _built([folder], tmp_path / "build", 0.1)
    assert report.duplicates == 2
    assert report.rejects == {"empty": 1, "suffix not read": 1}
    assert [(reject["reason"], reject["source"]) for reject in report.rejected] == [
        ("empty", str(folder / "0202.txt")),
        ("suffix not read", str(folder / "z.png")),
    ]
    assert report.train_documents + report.held_out_documents == 200
    assert 5 <= report.held_out_documents <= 40
    assert len({document.text for document in (*train, *held_out)}) == 200
    for documents, num_bytes in ((train, report.train_bytes), (held_out, report.held_out_bytes)):
        assert sum(len(document.text.encode()) for document in documents) == num_bytes


def test_copies_are_equal_in_every_byte(tmp_path: Path) -> None:
    """What differs in case or white space is another text."""
    train, held_out, report = _built([_write(tmp_path / "a", ["a b", "A b", "a  b", "a b\n", "a b"])], tmp_path / "b")
    assert report.duplicates == 1
    assert sorted(document.text for document in (*train, *held_out)) == ["A b", "a  b", "a b", "a b\n"]


def test_what_is_held_out_depends_on_the_text_alone(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(300)]
    train, first, _ = _built([_write(tmp_path / "a", texts)], tmp_path / "build a", 0.05)
    more = [*reversed(texts), *(f"more {number}" for number in range(100))]
    _, second, _ = _built([_write(tmp_path / "b", more)], tmp_path / "build b", 0.05)
    assert {d.text for d in first} == {d.text for d in second if d.text.startswith("text")}
    assert [d.text for d in train] == [text for text in texts if text not in {d.text for d in first}]
    drawn = {
        text: int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"hold_out").digest(), "big")
        for text in texts
    }
    assert {d.text for d in first} == {text for text, number in drawn.items() if number < 0.05 * 2**64}


def test_something_is_held_out_and_something_is_left(tmp_path: Path) -> None:
    for number in range(2, 6):
        folder = _write(tmp_path / str(number), [f"text {number} {i}" for i in range(number)])
        for fraction in (1e-9, 1 - 1e-9):
            train, held_out, _ = _built([folder], tmp_path / f"build {number}", fraction)
            assert len(held_out) == (1 if fraction < 0.5 else number - 1)
            assert len(train) + len(held_out) == number


@pytest.mark.parametrize("text", ["line\n" * 1000, "x" * 1000, "ab", "\n\n"])
def test_the_end_of_a_lone_document_is_held_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "book.txt").write_text(text)
    (head,), (tail,), report = _built([tmp_path / "book.txt"], tmp_path / "build")
    assert head.text
    assert tail.text
    assert head.text + tail.text == text
    assert len(tail.text) <= max(0.02 * len(text) + 1, 1)
    assert (head.id, tail.id) == ("text/book.txt", "text/book.txt#end")
    assert (report.train_bytes, report.held_out_bytes) == (len(head.text), len(tail.text))
    if text.startswith("line"):
        assert head.text.endswith("\n")


def test_bad_input_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match="one character"):
        _built([tmp_path / "a.txt"], tmp_path / "build")
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="share"):
            text_recipe([tmp_path], held_out_fraction=fraction)
    with pytest.raises(UserError, match="does not exist"):
        _built([tmp_path / "b"], tmp_path / "build")


def test_it_is_a_recipe_of_three_stages_and_by_default_on_the_standard_library() -> None:
    shipped = tomllib.loads(TEXT_BUILD.read_text(encoding="utf-8"))
    recipe = text_recipe(None, held_out_fraction=0.02)
    assert [stage.name for stage in recipe.stage] == [stage["kind"] for stage in shipped["stage"]]
    assert recipe.source[0].paths == ("python:stdlib",)
    assert len(text_recipe(None, held_out_fraction=None).stage) == 1


def test_the_standard_library_is_a_source(tmp_path: Path) -> None:
    """Of many megabytes, so that its build takes a few seconds."""
    train, held_out, report = _built_default(tmp_path)
    assert report.train_bytes > 5e6
    assert 0.002 < report.held_out_bytes / report.train_bytes < 0.1
    assert "text/json/decoder.py" in {document.id for document in (*train, *held_out)}


def _built_default(directory: Path) -> tuple[list[Document], list[Document], TextReport]:
    build = run_build(text_recipe(None, held_out_fraction=0.02), directory)
    last = build.stages()[-1]
    return list(documents_of(last)), list(documents_of(last, dropped=True)), TextReport.of(build)
