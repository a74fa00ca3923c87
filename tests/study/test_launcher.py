"""The launcher runs every point once, past kills, divergence, failures and launchers before it; what reports say."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from leyden.core.errors import Interrupted, UserError
from leyden.core.lock import folder_lock
from leyden.study.executors import Job
from leyden.study.grid import Point
from leyden.study.grid_report import write_study
from leyden.study.kinds import KINDS
from leyden.study.launcher import MAX_STARTS, carry_out
from leyden.study.outcome import PointFolder

pytestmark = [pytest.mark.usefixtures("empty_plots"), pytest.mark.slow]


def a_point(name: str, seed: int = 0, **coordinates: str) -> Point:
    key = f"{name}-{seed}"
    return Point(key, f"{name}, seed {seed}", coordinates or {"name": name}, seed, "recipe", 1000, 900, 640, 1e6)


def finish(run: Path, losses: Sequence[float], held_out: float | None = None) -> None:
    """Leave what a finished run leaves."""
    lines = [
        {"step": step, "loss": loss, "tokens": 64 * step, "tokens_per_second": 640.0, "skipped": False}
        for step, loss in enumerate(losses, 1)
    ]
    (run / "report").mkdir(parents=True, exist_ok=True)
    (run / "final").mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluated = {"stage": "one", "held_out_loss": held_out} if held_out is not None else {"task": "other"}
    (run / "eval.jsonl").write_text(json.dumps(evaluated) + "\n")
    (run / "environment.json").write_text(json.dumps({"leyden": "0.0.1", "commit": "abc"}))
    (run / "report" / "index.html").write_text("")


class Scripted:
    """An executor whose jobs do what the script of their point says, one entry a start."""

    def __init__(self, script: Callable[[str, Path, int], int]) -> None:
        self.script = script
        self.started: list[str] = []

    def has_room(self) -> bool:
        return True

    def describe(self) -> str:
        return "a script"

    def start(self, job: Job) -> "Ended":
        assert job.arguments[0] == "run"
        self.started.append(job.key)
        return Ended(self.script(job.key, Path(job.arguments[-1]), self.started.count(job.key)))


class Ended:
    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def stop(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leyden.study.launcher._LOOK_SECONDS", 0)


def all_well(key: str, run: Path, start: int) -> int:
    finish(run, [5.0, 4.0, 3.0], held_out=3.5)
    return 0


def test_points_are_run_once_and_never_again(tmp_path: Path) -> None:
    points = [a_point("a"), a_point("b"), a_point("a")]
    first, again = Scripted(all_well), Scripted(all_well)
    results = carry_out(points, tmp_path, first, threads=1)
    assert first.started == ["a-0", "b-0"]
    assert {key: (one.status, one.loss, one.train_loss) for key, one in results.items()} == {
        "a-0": ("done", 3.5, 3.0),
        "b-0": ("done", 3.5, 3.0),
    }
    assert carry_out([*points, a_point("c")], tmp_path, again, threads=1).keys() == {"a-0", "b-0", "c-0"}
    assert again.started == ["c-0"]


def test_a_killed_process_is_started_again_and_a_hopeless_one_is_kept_by_name(tmp_path: Path) -> None:
    def script(key: str, run: Path, start: int) -> int:
        return -9 if key == "hopeless-0" or start < 3 else all_well(key, run, start)

    executor = Scripted(script)
    results = carry_out([a_point("a"), a_point("hopeless")], tmp_path, executor, threads=1)
    assert (results["a-0"].status, results["a-0"].starts) == ("done", 3)
    assert results["hopeless-0"].status == "failed"
    assert results["hopeless-0"].reason == f"its process was killed by SIGKILL, {MAX_STARTS} times"
    assert executor.started.count("hopeless-0") == MAX_STARTS
    retried = Scripted(all_well)
    assert carry_out([a_point("a"), a_point("hopeless")], tmp_path, retried, threads=1, retry=True)["hopeless-0"].loss
    assert retried.started == ["hopeless-0"]


def test_failed_and_diverged_points_do_not_lose_the_others_and_are_named(tmp_path: Path) -> None:
    def script(key: str, run: Path, start: int) -> int:
        if key == "failed-0":
            run.parent.joinpath("log.txt").write_text("Error: the recipe\n cannot be run")
            return 2
        finish(run, {"up-0": [3.0, 4.0, 5.0], "nan-0": [3.0, float("nan")]}.get(key, [3.0, 2.0]))
        return 0

    points = [a_point(name) for name in ("good", "failed", "up", "nan")]
    results = carry_out(points, tmp_path, Scripted(script), threads=1)
    assert [results[point.key].status for point in points] == ["done", "failed", "diverged", "diverged"]
    assert results["failed-0"].reason == "Error: the recipe cannot be run"
    text = write_study(KINDS["ablation"], points, results, tmp_path)
    assert "failed, seed 0 failed and is left out of every table and fit: Error: the recipe cannot be run." in text
    assert "up, seed 0 diverged and is left out" in text
    assert "the loss was 3.000 at first and 5.000 in the end" in text
    assert "1 of 1 runs were made by version 0.0.1 at abc" in text
    assert "<summary>nan, seed 0: diverged" in (tmp_path / "report.html").read_text()


def test_nothing_that_is_done_is_nothing_to_report(tmp_path: Path) -> None:
    results = carry_out([a_point("a")], tmp_path, Scripted(lambda *_: 2), threads=1)
    with pytest.raises(UserError, match=r"no run of this study is done.*it left no log.*--retry"):
        write_study(KINDS["ablation"], [a_point("a")], results, tmp_path)


def test_a_run_that_outlived_its_launcher_is_awaited_and_not_run_twice(tmp_path: Path) -> None:
    folder = PointFolder(tmp_path, a_point("a"))
    executor = Scripted(all_well)
    with pytest.MonkeyPatch.context() as patch, folder_lock(folder.run, "trains a run"):
        looks = iter(["held", "held"])

        def holder(run: Path) -> str | None:
            found = next(looks, None)
            if found is None:
                finish(run, [2.0, 1.0])
            return found

        patch.setattr("leyden.study.launcher.lock_holder", holder)
        results = carry_out([a_point("a")], tmp_path, executor, threads=1)
    assert (results["a-0"].status, executor.started) == ("done", [])


def test_ctrl_c_stops_all_runs_and_keeps_what_is_done(tmp_path: Path) -> None:
    stopped = []

    class Endless(Ended):
        def poll(self) -> int:
            raise KeyboardInterrupt

        def stop(self) -> None:
            stopped.append(self)

    executor = Scripted(all_well)
    executor.start = lambda job: Endless(0)  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="The same command goes on"):
        carry_out([a_point("a"), a_point("b")], tmp_path, executor, threads=1)
    assert len(stopped) == 2
    assert carry_out([a_point("a"), a_point("b")], tmp_path, Scripted(all_well), threads=1).keys() == {"a-0", "b-0"}


def test_two_launchers_do_not_share_a_folder(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "carries out a study"), pytest.raises(UserError, match="carries out a study there"):
        carry_out([a_point("a")], tmp_path, Scripted(all_well), threads=1)


def test_a_damaged_result_is_said(tmp_path: Path) -> None:
    carry_out([a_point("a")], tmp_path, Scripted(all_well), threads=1)
    place = tmp_path / "points" / "a-0" / "result.json"
    for text in ("{", '{"key": "a-0"}'):
        place.write_text(text)
        with pytest.raises(UserError, match=r"result\.json is no result of this version of Leyden; remove it"):
            carry_out([a_point("a")], tmp_path, Scripted(all_well), threads=1)


def test_an_ablation_tells_better_from_worse_by_seed(tmp_path: Path) -> None:
    """Seeds differ by more than points do; paired, they tell all the same."""
    losses = {"base": 0.0, "better": -0.1, "worse": 0.1, "equal": 0.0}

    def script(key: str, run: Path, start: int) -> int:
        name, seed = key.split("-")
        wobble = 0.004 * (int(seed) - 1) if name == "equal" else 0.001 * int(seed)
        finish(run, [9.0, 3.0 + losses[name] + int(seed) + wobble])
        return 0

    points = [a_point(name, seed) for name in losses for seed in range(3)]
    results = carry_out(points, tmp_path, Scripted(script), threads=1)
    rows = [line.split(" | ") for line in write_study(KINDS["ablation"], points, results, tmp_path).splitlines()]
    told = {row[0].removeprefix("| "): row[5] for row in rows if len(row) == 7}
    assert told == {
        "point": "verdict",
        "base": "baseline",
        "better": "better",
        "worse": "worse",
        "equal": "not told apart",
    }


def test_an_ablation_without_its_first_point_says_what_it_is_beside(tmp_path: Path) -> None:
    def script(key: str, run: Path, start: int) -> int:
        finish(run, [9.0, float("nan") if key.startswith("base") else 3.0])
        return 0

    points = [a_point(name, seed) for name in ("base", "other", "third") for seed in range(2)]
    results = carry_out(points, tmp_path, Scripted(script), threads=1)
    text = write_study(KINDS["ablation"], points, results, tmp_path)
    assert "No run of the grid's first point" in text and "differences are from the next point that has one" in text
    assert "| other | " in text and "No run of the grid's first" not in write_study(
        KINDS["ablation"], points[2:], results, tmp_path
    )
