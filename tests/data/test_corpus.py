"""Duplicates go, the held-out part does not move, and the report adds up."""

import pytest

from leyden.core.errors import UserError
from leyden.data import build_corpus


def _write(folder, texts):
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04d}.txt").write_text(text)
    return folder


def test_duplicates_go_and_the_report_adds_up(tmp_path):
    folder = _write(tmp_path / "a", [f"text {number} é" for number in range(200)] + ["text 5 é", "text 6 é", ""])
    (folder / "z.png").write_bytes(b"")
    corpus = build_corpus([folder], held_out_fraction=0.1)
    report = corpus.report
    assert report.duplicates == 2
    assert report.rejects == {"empty": 1, "suffix not read": 1}
    assert len(corpus.rejects) == 2
    assert report.train_documents + report.held_out_documents == 200
    assert 5 <= report.held_out_documents <= 40
    texts = {document.text for document in corpus.train} | {document.text for document in corpus.held_out}
    assert len(texts) == 200
    for documents, num_bytes in ((corpus.train, report.train_bytes), (corpus.held_out, report.held_out_bytes)):
        assert sum(len(document.text.encode()) for document in documents) == num_bytes


def test_what_is_held_out_depends_on_the_text_alone(tmp_path):
    texts = [f"text {number}" for number in range(300)]
    first = build_corpus([_write(tmp_path / "a", texts)], held_out_fraction=0.05)
    more = [*reversed(texts), *(f"more {number}" for number in range(100))]
    second = build_corpus([_write(tmp_path / "b", more)], held_out_fraction=0.05)
    assert {d.text for d in first.held_out} == {d.text for d in second.held_out if d.text.startswith("text")}
    assert [d.text for d in first.train] == [t for t in texts if t not in {d.text for d in first.held_out}]


def test_something_is_held_out_and_something_is_left(tmp_path):
    for number in range(2, 6):
        folder = _write(tmp_path / str(number), [f"text {number} {i}" for i in range(number)])
        for fraction in (1e-9, 1 - 1e-9):
            corpus = build_corpus([folder], held_out_fraction=fraction)
            assert len(corpus.held_out) == (1 if fraction < 0.5 else number - 1)
            assert len(corpus.train) + len(corpus.held_out) == number


@pytest.mark.parametrize("text", ["line\n" * 1000, "x" * 1000, "ab", "\n\n"])
def test_the_end_of_a_lone_document_is_held_out(tmp_path, text):
    (tmp_path / "book.txt").write_text(text)
    corpus = build_corpus([tmp_path / "book.txt"])
    (head,), (tail,) = corpus.train, corpus.held_out
    assert head.text
    assert tail.text
    assert head.text + tail.text == text
    assert len(tail.text) <= max(0.02 * len(text) + 1, 1)
    assert tail.id == "book.txt#end"
    if text.startswith("line"):
        assert head.text.endswith("\n")


def test_bad_input_is_a_user_error(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match="one character"):
        build_corpus([tmp_path])
    for fraction in (0, 1, -1, float("nan")):
        with pytest.raises(UserError, match="between 0 and 1"):
            build_corpus([tmp_path], held_out_fraction=fraction)
    with pytest.raises(UserError, match="does not exist"):
        build_corpus([tmp_path / "b"])


def test_the_default_is_the_standard_library():
    corpus = build_corpus()
    assert corpus.report.train_bytes > 5e6
    assert 0.002 < corpus.report.held_out_bytes / corpus.report.train_bytes < 0.1
    assert "json/decoder.py" in {document.id for document in (*corpus.train, *corpus.held_out)}
