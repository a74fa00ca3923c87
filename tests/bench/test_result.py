"""Verdicts, the table and the JSON of a benchmark."""

import dataclasses
import json

import pytest
from rich.console import Console

from leyden.bench import BenchResult, ResultRow, render

RATIO = ResultRow("w", "tokens/s", 10.0, 30.0, ratio=3.0, at_least=2, aim=4)
FLAT = ResultRow("w", "times", None, 1.1, judged="ours", aim=1.15, at_most=True)


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (RATIO, "met"),
        (dataclasses.replace(RATIO, ratio=4.0), "aim met"),
        (dataclasses.replace(RATIO, ratio=1.9), "missed"),
        (dataclasses.replace(RATIO, at_least=None), "aim missed"),
        (dataclasses.replace(RATIO, at_least=None, aim=None), ""),
        (dataclasses.replace(RATIO, aim=None), "met"),
        (FLAT, "aim met"),
        (dataclasses.replace(FLAT, ours=1.2), "aim missed"),
        (dataclasses.replace(FLAT, at_most=False), "aim missed"),
    ],
)
def test_verdict(row, verdict):
    assert row.verdict == verdict


def result(*rows: ResultRow) -> BenchResult:
    machine = {"cpu": "a cpu"}
    return BenchResult("cpu", list(rows), {"threads": 2}, {}, machine, {"torch": "2"}, "leyden bench cpu")


def test_json_holds_rows_with_their_verdicts(tmp_path):
    result(RATIO, FLAT).save(tmp_path / "results" / "cpu.json")
    data = json.loads((tmp_path / "results" / "cpu.json").read_text())
    assert [row["verdict"] for row in data["rows"]] == ["met", "aim met"]
    assert data["rows"][0]["ratio"] == 3.0
    assert data["command"] == "leyden bench cpu"


def test_table_shows_figures_and_what_each_side_ran():
    console = Console(width=160)
    with console.capture() as captured:
        console.print(render(result(dataclasses.replace(RATIO, theirs=1234.4, how="theirs in [eager]"))))
    text = captured.get()
    for part in ("1,234", "30", "3x", "2x", "4x", "met", "theirs in [eager]", "a cpu, 2 threads"):
        assert part in text
