"""``leyden data``: a corpus built, counted and looked into from the command line."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

RECIPE = """
[build]
workers = 1

[[source]]
name = "letters"
paths = ["letters"]

[[source]]
name = "chats"
paths = ["chats.jsonl"]

[[stage]]
kind = "unicode"

[[stage]]
kind = "length"
min_words = 5

[[stage]]
kind = "exact"

[[stage]]
kind = "minhash"
threshold = 0.6
verify = true
evidence_documents = 50
evidence_seeds = 2

[[stage]]
kind = "hold_out"
share = 0.2

[tokens]
vocab_size = 300
by = "source"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, leyden_cli: Cli) -> Path:
    """Letters (two near-duplicates, two equal, one short, one not UTF-8, one garbled), chats, and a build of them."""
    folder = tmp_path_factory.mktemp("data_verbs")
    letters = folder / "letters"
    letters.mkdir()
    for number in range(20):
        words = " ".join(f"w{number}x{i}" for i in range(60))
        (letters / f"{number:02d}.txt").write_text(f"Dear {number}, {words}.")
    long = " ".join(f"word{i}" for i in range(100))
    (letters / "near-a.txt").write_text(long + " and an end")
    (letters / "near-b.txt").write_text(long + " with another end")
    (letters / "same.txt").write_text((letters / "00.txt").read_text())
    (letters / "short.txt").write_text("too short")
    (letters / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    (letters / "garbled.txt").write_text("the cafÃ© on the corner was closed for the whole of the winter " + long[:200])
    chats = [(f"What is {n}?", f"{n} is one more than {n - 1}, and one less than {n + 1}.") for n in range(30)]
    rows = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in chats]
    lines = [json.dumps({"messages": messages}) + "\n" for messages in rows]
    (folder / "chats.jsonl").write_text("".join(lines))
    (folder / "corpus.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        outcome = leyden_cli("data", "build", "corpus.toml")
    assert outcome.code == 0, outcome.err
    assert "runs/corpus/report/index.html" in outcome.err.replace("\n", "")
    return folder / "runs" / "corpus"


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)


def test_the_report_says_what_happened(place: Path) -> None:
    page = _Text()
    page.feed((place / "report" / "index.html").read_text())
    for part in (
        "00-read",
        "04-minhash",
        "near-duplicate",
        "exact duplicate",
        "length: words",
        "not UTF-8",
        "held out",
    ):
        assert part in page.text, part
    assert page.tags.count("svg") >= 2
    facts = json.loads((place / "report" / "report.json").read_text())
    assert [row["stage"] for row in facts["funnel"]] == [
        "00-read", "01-unicode", "02-length", "03-exact", "04-minhash", "05-hold_out",
    ]  # fmt: skip
    read = facts["funnel"][0]
    assert (read["kept"]["documents"], read["rejected"]) == (55, {"not UTF-8": 1})
    assert facts["funnel"][1]["rewritten"] == 1
    for row in facts["funnel"]:
        gone = sum(tally["documents"] for tally in row["dropped"].values())
        assert row["given"]["documents"] == row["kept"]["documents"] + gone
    assert facts["kept"]["documents"]["source"].keys() == {"letters", "chats"}


def test_stats(place: Path, leyden_cli: Cli) -> None:
    outcome = leyden_cli("data", "stats", str(place))
    assert outcome.code == 0, outcome.err
    assert "04-minhash" in outcome.out
    assert "letters" in outcome.out
    plain = leyden_cli("data", "stats", str(place), "--json")
    assert json.loads(plain.out)["funnel"][0]["stage"] == "00-read"


def test_what_was_dropped_and_why(place: Path, leyden_cli: Cli) -> None:
    outcome = leyden_cli("data", "inspect", str(place), "--reason", "length")
    assert "letters/letters/short.txt" in outcome.out
    assert "length: words" in outcome.out
    only = leyden_cli("data", "inspect", str(place), "--stage", "exact", "--limit", "1")
    assert only.out.count("dropped by") == 1
    assert leyden_cli("data", "inspect", str(place), "--reason", "nothing of the kind").out.strip()


def test_what_became_of_one_document(place: Path, leyden_cli: Cli) -> None:
    outcome = leyden_cli("data", "inspect", str(place), "letters/letters/garbled.txt")
    assert outcome.code == 0, outcome.err
    assert "café" in outcome.out
    assert "cafÃ©" in outcome.out
    assert "00-read kept" in outcome.out
    dropped = leyden_cli("data", "inspect", str(place), "letters/letters/short.txt")
    assert "02-length dropped: length: words" in dropped.out
    unknown = leyden_cli("data", "inspect", str(place), "letters/letters/shrt.txt")
    assert unknown.code == 2
    assert "near it are: letters/letters/short.txt" in unknown.err.replace("\n", " ")


def test_near_duplicates_side_by_side(place: Path, leyden_cli: Cli) -> None:
    outcome = leyden_cli("data", "inspect", str(place), "--clusters")
    assert "near-a.txt" in outcome.out
    assert "near-b.txt" in outcome.out
    assert "with another" in outcome.out
    assert "and an" in outcome.out


def test_the_same_command_does_nothing_again(place: Path, leyden_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.parents[1])
    before = {path: path.stat().st_mtime_ns for path in place.glob("stages/*/done/*")}
    tokens = {path: path.stat().st_mtime_ns for path in place.glob("tokens/**/*.tokens")}
    assert len(tokens) == 2
    assert leyden_cli("data", "build", "corpus.toml").code == 0
    assert before == {path: path.stat().st_mtime_ns for path in place.glob("stages/*/done/*")}
    assert tokens == {path: path.stat().st_mtime_ns for path in place.glob("tokens/**/*.tokens")}


def test_a_dry_run_prints_every_default(place: Path, leyden_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.parents[1])
    outcome = leyden_cli("data", "build", "corpus.toml", "--dry-run", "--set", "build.workers=3")
    assert "workers = 3" in outcome.out
    assert "shingle_words = 5" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("build", "nowhere.toml"), "nowhere.toml does not exist"),
        (("stats", "nowhere"), "nowhere holds no build"),
        (("inspect", "nowhere"), "nowhere holds no build"),
        (("build", "corpus.toml", "--set", "stage.0.kind=unicod"), "did you mean 'unicode'?"),
        (("build", "corpus.toml", "--set", "stage.1.min_words=-1"), "min_words"),
        (("build", "corpus.toml", "--set", "build.shard_byte=5"), "did you mean 'shard_bytes'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes(
    arguments: tuple[str, ...], said: str, place: Path, leyden_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.parents[1])
    outcome = leyden_cli("data", *arguments)
    assert outcome.code == 2
    assert said in " ".join(outcome.err.split())
