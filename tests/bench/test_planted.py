"""Planted faults: a small corpus, every kind of fault, and a check that can fail."""

import random
from pathlib import Path

import pytest

from leyden.bench.data import planted, planted_run
from leyden.bench.data.planted import Plants, check
from leyden.bench.data.planted_run import run_planted
from leyden.core.errors import UserError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty documents of prose, all different."""
    for module in (planted, planted_run):
        monkeypatch.setattr(module, "COPIES", 4)
    monkeypatch.setattr(planted, "JUNK", 3)
    sentences, chosen = planted._sentences(), random.Random(1)
    folder = tmp_path / "prose"
    folder.mkdir()
    for number in range(40):
        paragraphs = (" ".join(chosen.sample(sentences, 8)) for _ in range(6))
        (folder / f"{number}.txt").write_text("\n".join(paragraphs), encoding="utf-8")
    return folder


def test_every_plant_is_found(root: Path, tmp_path: Path) -> None:
    assert run_planted([root], tmp_path / "build", megabytes=0.1, workers=1, output=tmp_path / "planted.json")
    assert (tmp_path / "planted.json").exists()
    with pytest.raises(UserError, match="less than the 100 asked for"):
        run_planted([root], tmp_path / "build", megabytes=100, workers=1)


def test_what_is_missed_is_said() -> None:
    plants = Plants(
        documents={"exact copy": ["a"], "menu": ["b", "c"], "mail address": ["d", "e"]},
        originals={"a": "original"},
        clean={"d": "x@y.com", "e": "x@y.com"},
        broken=["one", "two"],
    )
    kept = {"reason": None, "text": "write to x@y.com"}
    fates = {
        "a": kept,
        "original": kept,
        "b": kept,
        "c": {"reason": "short", "text": ""},
        "d": kept,
        "e": {"reason": None, "text": "write to nobody"},
    }
    found = {row.kind: (row.planted, row.found) for row in check(plants, fates, ["one"])}
    assert found == {"exact copy": (1, 0), "menu": (2, 1), "mail address": (2, 1), "file that cannot be read": (2, 1)}
    fates["original"] = {"reason": "exact duplicate", "text": ""}
    assert check(plants, fates, [])[0].found == 1
