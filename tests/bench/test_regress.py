"""``leyden bench regress`` measures another commit's code, states the noise, and names what fell."""

import json
import random
import subprocess
from pathlib import Path

import pytest

from leyden.bench.regress import run as regress
from leyden.bench.regress.rows import CPU, RegressRow, chosen, works
from leyden.bench.regress.run import Comparison, lost, run_regress
from leyden.bench.result import BenchResult
from leyden.core.errors import UserError

WORK = RegressRow("train", CPU, lambda number: ("train", number), 100.0)


class Side:
    """Stands for a worker: each call takes as long as it is told, give or take."""

    def __init__(self, seconds: float, noise: float, seed: int) -> None:
        self._draw, self._seconds, self._noise = random.Random(seed), seconds, noise
        self.numbers: list[int] = []

    def call(self, method: str, number: int) -> float:
        self.numbers.append(number)
        return self._seconds * (1 + self._draw.uniform(-self._noise, self._noise))


def result_of(base: float, this: float, noise: float, seed: int = 0) -> BenchResult:
    class Silent:
        def advance(self, amount: float = 1.0, note: str | None = None) -> None: ...

    sides = [Side(seconds, noise, 3 * seed + place) for place, seconds in enumerate((base, this, this))]
    row = regress._row(WORK, regress._take_turns(WORK, sides, 9, Silent()))
    assert sides[0].numbers == sides[1].numbers == sides[2].numbers and len(set(sides[0].numbers)) >= 10
    return BenchResult("regress", [row], {}, {}, {}, {}, "")


@pytest.mark.parametrize("seed", range(20))
def test_what_fell_by_more_than_the_noise_is_named_and_nothing_else(seed: int):
    assert lost(result_of(1.0, 1.0, 0.05, seed)) == []
    assert lost(result_of(1.0, 1.3, 0.05, seed)) == ["train"]
    assert lost(result_of(1.0, 0.7, 0.05, seed)) == []


def test_short_calls_are_repeated_and_every_figure_is_per_second():
    row = result_of(0.01, 0.005, 0.0).rows[0]
    assert (row.theirs, row.ours, row.ratio) == (pytest.approx(10_000), pytest.approx(20_000), pytest.approx(2))
    assert "this beside itself 1.000 to 1.000" in row.how


def test_the_interval_of_the_median_ratio():
    found = Comparison.of([2.0, 2.2, 1.8, 2.0, 4.0], [1.0] * 5)
    assert found.ratio == 2.0 and 1.8 <= found.low <= 2.0 <= found.high <= 4.0


def test_rows_are_chosen_by_how_their_names_begin():
    every = works(quick=True, megabytes=1)
    assert len({work.name for work in every}) == len(every)
    assert {work.name for work in chosen(every, ["train", "rules"])} == {"train-2x64", "train-1x128", "rules"}
    assert chosen(every, []) == every
    with pytest.raises(UserError, match=r"no row 'trian'.*train-2x64"):
        chosen(every, ["train", "trian"])


def test_a_commit_that_git_does_not_know():
    with pytest.raises(UserError, match="no-such-commit"):
        run_regress("no-such-commit", ["rules"], quick=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose first commit cannot tokenise, and has rules ten times as slow; the second is this one."""
    side = tmp_path / "src" / "leyden" / "bench" / "data_ours.py"
    side.parent.mkdir(parents=True)
    for folder in (side.parent, side.parent.parent):
        (folder / "__init__.py").write_text("")
    side.write_text(
        "import time\n"
        "class Ours:\n"
        "    def __init__(self, folder): pass\n"
        "    def rules(self): return 1.0\n"
        "    def deduplicate(self): return 1e-3\n"
    )
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "slow rules"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(regress, "_ROOT", tmp_path)
    monkeypatch.setattr(regress, "_MEGABYTES", 0.05)
    return tmp_path


@pytest.mark.slow
def test_the_code_of_the_other_commit_is_what_is_measured(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    result = run_regress("HEAD", ["rules", "tokenise"], rounds=3, quick=True, output=tmp_path / "out.json")
    assert [row.work for row in result.rows] == ["rules"]
    assert result.rows[0].theirs == pytest.approx(0.2) and result.rows[0].ratio > 2
    assert any("tokenise: not measured, the base cannot do it: AttributeError" in note for note in result.notes)
    printed = capsys.readouterr().out
    assert "slow rules" in printed and "base" in printed and "not measured" in printed
    assert json.loads((tmp_path / "out.json").read_text())["settings"]["base"].endswith("slow rules")
