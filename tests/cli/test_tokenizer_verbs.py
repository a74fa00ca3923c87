"""``leyden tokenizer train`` and ``report``: what they read, print and write."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leyden.data.builds.directory import FINISHED, StageDirectory
from leyden.data.documents import Document, Documents, Message
from leyden.data.marks import write_mark
from leyden.data.parquet import DocumentsWriter
from leyden.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("empty_plots")
Cli = Callable[..., Any]
ENGLISH = "The lightning struck the tower, and the tower kept the lightning in a jar of glass. "
GERMAN = "Der Blitz traf den Turm, und der Turm behielt den Blitz in einem Glas aus Quarz. "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "en.txt").write_text(ENGLISH * 30)
    (folder / "de.txt").write_text(GERMAN * 3)
    (folder / "code.py").write_text("def tower(glass):\n    return glass\n" * 10)
    (folder / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "LICENSE").write_text("all of it")
    return folder


def test_training_reports_by_language_and_domain(leyden_cli: Cli, folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text, "language": "la"}) + "\n" for text in ("Fulmen turrim", "icit")))
    directory = tmp_path / "tokenizer"
    outcome = leyden_cli("tokenizer", "train", folder, rows, "--dir", directory, "--vocab-size", 300)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{directory} holds a tokenizer of 300 tokens\n"
    assert "not read: 1 (1 suffix not read)" in outcome.err
    assert re.search(r"set aside: 1 \(1 (binary|not UTF-8)\)", outcome.err)
    facts = json.loads((directory / "report" / "report.json").read_text())
    assert {name: row["documents"] for name, row in facts["by_language"].items()} == {
        "en": 1, "de": 1, "Python": 1, "la": 2,
    }  # fmt: skip
    assert {name: row["documents"] for name, row in facts["by_domain"].items()} == {"notes": 3, "rows.jsonl": 2}
    tokenizer = Tokenizer.load(directory)
    assert facts["fingerprint"] == tokenizer.fingerprint
    assert facts["by_language"]["de"]["tokens"] == len(tokenizer.encode(GERMAN * 3))
    assert "bytes per token" in " ".join(outcome.err.split())
    assert (directory / "report" / "index.html").is_file()

    judged = leyden_cli("tokenizer", "report", directory, folder, rows, "--output", tmp_path / "judged")
    assert judged.code == 0, judged.err
    again = json.loads((tmp_path / "judged" / "report.json").read_text())
    assert again == {name: value for name, value in facts.items() if name != "training"}


def test_a_target_raises_a_language(leyden_cli: Cli, folder: Path, tmp_path: Path) -> None:
    train = ("tokenizer", "train", folder, "--vocab-size", 300)
    assert leyden_cli(*train, "--dir", tmp_path / "plain").code == 0
    outcome = leyden_cli(*train, "--dir", tmp_path / "raised", "--target", "de=1.9")
    assert outcome.code == 0, outcome.err
    plain, raised = (
        json.loads((tmp_path / name / "report" / "report.json").read_text())["by_language"]["de"]["bytes_per_token"]
        for name in ("plain", "raised")
    )
    assert raised > plain
    assert "de: " in outcome.err
    assert "the target is 1.9" in outcome.err


def test_wrong_targets_and_empty_folders_are_named(leyden_cli: Cli, folder: Path, tmp_path: Path) -> None:
    train = ("tokenizer", "train", folder, "--dir", tmp_path / "none", "--vocab-size", 300)
    for given, told in (("de", "LANG=BYTES"), ("xx=3", "no text"), ("de=-1", "above 0")):
        outcome = leyden_cli(*train, "--target", given)
        assert outcome.code == 2
        assert told in " ".join(outcome.err.split())
    (tmp_path / "empty").mkdir()
    outcome = leyden_cli("tokenizer", "report", tmp_path, tmp_path / "empty")
    assert outcome.code == 2
    assert not (tmp_path / "none").exists()


def test_a_build_is_read_by_its_last_stage(leyden_cli: Cli, tmp_path: Path) -> None:
    documents = [
        Document("1", ENGLISH * 5, "web", language="en"),
        Document(
            "2", "", "chats", messages=(Message("user", "Wie geht es?"), Message("assistant", "Gut.")), language="de"
        ),
    ]
    for stage, kept in (("00-read", documents * 2), ("01-exact", documents)):
        with DocumentsWriter(tmp_path / "build" / "stages" / stage / "documents" / "a.parquet") as writer:
            writer.write(Documents.of(kept))
        place = StageDirectory(tmp_path / "build" / "stages" / stage)
        write_mark(place.done("a"), [place.documents("a")], {"fingerprint": "", "counts": {}})
    command = ("tokenizer", "train", tmp_path / "build", "--dir", tmp_path / "t", "--vocab-size", 265)
    assert "has not finished" in leyden_cli(*command).err.replace("\n", " ")
    write_mark(tmp_path / "build" / FINISHED, ())
    outcome = leyden_cli(*command)
    assert outcome.code == 0, outcome.err
    facts = json.loads((tmp_path / "t" / "report" / "report.json").read_text())
    assert {name: row["bytes"] for name, row in facts["by_domain"].items()} == {
        "web": len(ENGLISH) * 5, "chats": len("Wie geht es?\n\nGut."),
    }  # fmt: skip
    assert set(facts["by_language"]) == {"en", "de"}
