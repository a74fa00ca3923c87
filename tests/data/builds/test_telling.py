"""What a build says of what it read and did not read, in the terminal, in ``stats`` and in the report."""

import json
import os
import re
from pathlib import Path

import pytest

from leyden.core.errors import UserError
from leyden.core.log import say
from leyden.data.builds import Build, plan, run_build
from leyden.data.builds.recipe import BuildRecipe, BuildSection, TokensSection
from leyden.data.builds.use import build_and_report, show_clusters, show_dropped, show_stats, show_story
from leyden.data.dedup import Exact
from leyden.data.readers import SourceSettings
from leyden.data.rules import Length
from leyden.data.stage import Stage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of every kind of luck."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, data in {
        "a.txt": b"one document",
        "b.jsonl": b'{"text": "two"}\n{"text": "three"}\n',
        "c.txt": b"",
        "copyright": b"all of it",
        "x.bin": b"\0",
        ".hidden": b"",
        "d.json": b"{}",
    }.items():
        (folder / name).write_bytes(data)
    (folder / "passwd.txt").symlink_to("/etc/passwd")
    return folder


def recipe(folder: Path, *stages: Stage, **build: object) -> BuildRecipe:
    section = BuildSection.model_validate({"workers": 1, **build})
    return BuildRecipe(build=section, source=(SourceSettings(name="text", paths=(str(folder),)),), stage=stages)


READ = (
    "00-read: 3 documents of 3 files, 0.0 MB; 5 not read (2 suffix not read, 1 JSON in a folder, 1 hidden, "
    "1 link outside the folder); 1 set aside (1 empty)"
)


def test_what_a_build_tells(folder, tmp_path, capsys):
    directory = tmp_path / "build"
    stages = Exact(), Length(min_words=2)
    build_and_report(recipe(folder, *stages).model_copy(update={"tokens": TokensSection(vocab_size=261)}), directory)
    assert READ in capsys.readouterr().err
    show_stats(directory, as_json=False)
    told = capsys.readouterr().out
    assert READ in told
    assert re.search("02-length .* length: words 2 ", told)  # not folded, though a pipe has no width
    assert re.search(r"│ all +│ 1 +│ 14 +│", told)  # documents and tokens
    facts = json.loads((directory / "report" / "report.json").read_text())
    skipped = {"suffix not read": 2, "JSON in a folder": 1, "hidden": 1, "link outside the folder": 1}
    assert facts["files"] == {"read": 3, "set_aside": {"empty": 1}, "not_read": skipped}
    page = (directory / "report" / "index.html").read_text()
    assert all(reason in page for reason in (*skipped, "empty"))
    names = directory / "stages" / "00-read" / "not_read.jsonl"
    named = [json.loads(line) for line in names.read_text().splitlines()]
    assert sorted(os.path.basename(line["source"]) for line in named) == [
        *(".hidden", "copyright", "d.json", "passwd.txt", "x.bin")
    ]
    for name in ("copyright", "x.bin", ".hidden", "d.json", "passwd.txt", "c.txt"):
        (folder / name).unlink()
    run_build(recipe(folder), directory)  # nothing of the last one is left
    assert "00-read: 3 documents of 2 files, 0.0 MB\n" in capsys.readouterr().err
    assert list((directory / "rejected").iterdir()) == []
    assert not names.exists()


def test_a_file_that_goes_while_the_build_begins_costs_that_file(folder, tmp_path, monkeypatch, capsys):
    planned = plan.plan_shards

    def then_one_goes(*arguments):
        shards = planned(*arguments)
        (folder / "a.txt").unlink()
        return shards

    monkeypatch.setattr(plan, "plan_shards", then_one_goes)
    run_build(recipe(folder, max_rejected=0.5), tmp_path / "build")
    assert "2 set aside (1 empty, 1 unreadable)" in capsys.readouterr().err


def test_a_folder_without_a_file_that_is_read_says_what_there_is(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "LICENSE").write_text("all of it")
    with pytest.raises(UserError, match="hold no file that is read: 1 suffix not read"):
        build_and_report(recipe(tmp_path / "corpus"), tmp_path / "build")


def test_names_that_others_gave_do_not_steer_the_terminal(tmp_path, capsys):
    folder = tmp_path / "corpus"
    folder.mkdir()
    evil = "new\nline\x1b]0;PWNED\x07\x1b[31m\u202e[red]<img src=x onerror=alert(1)>"
    for name in (f"{evil}1.txt", f"{evil}2.txt"):
        (folder / name).write_text(f"same {evil} text")
    (folder / f"{evil}.jsonl").write_text("x\n")
    (folder / f"{evil}.bin").write_text("")
    (folder / os.fsdecode(b"\xff.txt")).write_text("no name")
    directory = tmp_path / "build"
    build_and_report(recipe(folder, Exact(), max_rejected=0.9), directory)
    show_stats(directory, as_json=False)
    show_dropped(directory, None, None, 10)
    show_clusters(directory, 10)
    [kept] = [id for batch in Build.open(directory).stages()[-1].read() for id in batch.column("id")]
    show_story(directory, kept)
    with pytest.raises(UserError) as raised:
        show_story(directory, kept[:-5])
    say(str(raised.value))
    told = capsys.readouterr()
    assert "exact duplicate" in told.out and "PWNED" in told.out and "PWNED" in told.err
    page = (directory / "report" / "index.html").read_text()
    assert "PWNED" in page and "<img src=x" not in page and "\\udcff" in page
    for text in (told.out, told.err, page):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_an_id_that_is_not_there_names_the_nearest(tmp_path):
    (tmp_path / "corpus").mkdir()
    for number in range(300):
        (tmp_path / "corpus" / f"{number:03d}.txt").write_text(f"text {number}")
    directory = tmp_path / "build"
    run_build(recipe(tmp_path / "corpus"), directory)
    for given, near in (("123.txt", "text/corpus/123.txt"), ("text/corpus/12", "text/corpus/12"), ("nope", None)):
        with pytest.raises(UserError) as raised:
            show_story(directory, given)
        assert len(str(raised.value)) < 300
        assert near is None or near in str(raised.value).partition("near it are")[2]


def test_an_error_in_a_stage_does_not_show_the_whole_list() -> None:
    stages = [{"kind": "unicode"}, {"kind": "perplexity"}]
    with pytest.raises(UserError, match=r"stage 1 \(perplexity\)") as raised:
        BuildRecipe.parse({"source": [{"name": "a", "paths": ["a"]}], "stage": stages}, "recipe.toml")
    assert "unicode" not in str(raised.value)
