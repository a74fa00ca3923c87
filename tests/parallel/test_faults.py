"""What goes wrong on ranks: plans that cannot be, steps that are not finite, errors of one rank, ranks that hang."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import rank_runs
import torch
import torch.distributed as dist
import toy_run
from gloo_ranks import mesh_of

from leyden.core.errors import Interrupted, UserError
from leyden.parallel import Mesh, Plan, RankGroup, attach, start
from leyden.train import LearningRate, MasterAdamW, Pretrain, Sums, TrainState, fit, read_metrics

PLAN = ("--set", "parallel.cp=2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rank_runs.write_recipe(tmp_path_factory.mktemp("faults") / "recipe")


def _launched(patch: pytest.MonkeyPatch, world: int) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": world, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": world}.items():
        patch.setenv(name, str(value))


def test_an_impossible_plan_is_refused_before_any_process_group(
    recipe: Path, tmp_path: Path, leyden_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the ranks were started")

    _launched(monkeypatch, 6)
    monkeypatch.setattr("leyden.recipes.runner.team_of", never)
    changes = ("--set", "parallel.tp=3", "--set", "parallel.ep=3")
    outcome = leyden_cli("run", recipe, "--dir", tmp_path / "run", *changes)
    assert outcome.code == 2
    said = " ".join(outcome.err.split())
    assert "tp = 3 does not divide 2 attention heads" in said
    assert "ep = 3 does not divide 4 experts" in said
    assert "Nearest plans that work" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [(["parallel.cp=2"], 2), (["parallel.ep=4"], 4), (["parallel.tp=2", "parallel.etp=4", "parallel.pp=2"], 8)],
)
def test_a_plan_of_many_ranks_on_one_says_how_to_start_them(
    recipe: Path, tmp_path: Path, leyden_cli: Callable[..., Any], changes: list[str], ranks: int
) -> None:
    settings = [word for change in changes for word in ("--set", change)]
    outcome = leyden_cli("run", recipe, "--dir", tmp_path / "run", *settings)
    assert outcome.code == 2
    said = " ".join(outcome.err.split())
    assert f"at least {ranks} ranks" in said
    assert f"torchrun --nproc-per-node {ranks} -m leyden run" in said


def test_only_the_first_rank_speaks() -> None:
    program = "from leyden.core.log import say, speak_up; say('quiet'); speak_up(); say('loud')"
    heard = {}
    for rank in ("0", "1"):
        environment = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        command = [sys.executable, "-c", program]
        heard[rank] = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stderr
    assert heard == {"0": "quiet\nloud\n", "1": "loud\n"}


class NotFinite(Pretrain):
    """The gradient of one rank is infinite in the steps given (two micro-batches a step, the second)."""

    def __init__(self, rank: int, steps: set[int]) -> None:
        self.calls, self.steps = 0, steps if dist.get_rank() == rank else set()

    def sums(self, model: Any, features: Any, batch: Any, /) -> Sums:
        sums = super().sums(model, features, batch)
        self.calls += 1
        return replace(sums, loss=sums.loss * float("inf")) if self.calls / 2 in self.steps else sums


def _attached(plan: Plan, store: Path) -> TrainState:
    mesh = replace(mesh_of(plan), store=dist.FileStore(str(store), plan.world))
    attached = attach(toy_run.tiny_model(), mesh, torch.float32)
    return TrainState(attached.model, MasterAdamW(attached.weights), RankGroup(mesh))


def _train_not_finite(plan: Plan, directory: Path) -> dict[str, Any]:
    state = _attached(plan, directory / "store")
    masters = state.optimizer.masters()
    seen: list[tuple[int, bool, bool]] = []

    def note(state: TrainState, result: Any) -> None:
        same = all(torch.equal(masters[name], before[name]) for name in masters)
        seen.append((state.step, result.skipped, same))
        before.update({name: tensor.clone() for name, tensor in masters.items()})

    before = {name: tensor.clone() for name, tensor in masters.items()}
    broken = NotFinite(1, {2, 5, 6, 7})
    settings = toy_run.settings(total_steps=20, max_skipped_steps=3)
    batches = toy_run.CountingBatches(9)
    try:
        fit(state, batches, broken, LearningRate(lr=1e-2), settings, run_dir=directory, callbacks=[note])
    except UserError as error:
        return {"seen": seen, "error": str(error), "updates": state.optimizer.num_steps}
    return {}


def test_a_gradient_that_is_infinite_on_one_rank_skips_the_step_on_all(
    ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    for found in ranks(2, _train_not_finite, Plan(dp_shard=2), tmp_path):
        skipped = {step for step, skip, _ in found["seen"] if skip}
        assert skipped == {2, 5, 6, 7}
        assert {step for step, _, same in found["seen"] if same} == skipped, "the weights change in the other steps"
        assert "3 steps in a row were skipped, from step 5 on" in found["error"]
        assert found["updates"] == 3
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records if record["skipped"]] == [2, 5, 6, 7]
    assert records[1]["grad_norm"] is None


class Unlabelled(toy_run.CountingBatches):
    """Step 2 has no label on the second rank, step 3 on none (two micro-batches a step)."""

    def __next__(self) -> toy_run.Batch:
        batch = super().__next__()
        if self.served in (5, 6) or (self.served in (3, 4) and dist.get_rank() == 1):
            batch.labels.fill_(-100)
        return batch


def _train_unlabelled(plan: Plan, directory: Path) -> list[tuple[int, bool]]:
    state, seen = _attached(plan, directory / "store"), []
    settings = toy_run.settings(total_steps=4)

    def note(_: TrainState, result: Any) -> None:
        seen.append((result.weight, result.skipped))

    fit(state, Unlabelled(9), Pretrain(), LearningRate(lr=1e-2), settings, run_dir=directory, callbacks=[note])
    return [*seen, (state.optimizer.num_steps, False)]


def test_a_step_without_a_label_on_any_rank_is_skipped_on_all(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    for found in ranks(2, _train_unlabelled, Plan(dp_shard=2), tmp_path):
        assert found == [(144, False), (72, False), (0, True), (144, False), (3, False)]


def _first(store: Path) -> list[str]:
    """What each call of ``first`` gave on this rank."""
    mesh = replace(mesh_of(Plan(cp=2)), store=dist.FileStore(str(store), 2))
    rank_group, found = RankGroup(mesh), []

    def fail(error: BaseException) -> Any:
        raise error

    for error in (None, UserError("no documents"), Interrupted("stopped"), KeyboardInterrupt(), KeyError("x")):
        own = {"rank": rank_group.rank}
        try:
            found.append(str(rank_group.first(lambda own=own, error=error: own if error is None else fail(error))))
        except BaseException as raised:
            found.append(f"{type(raised).__name__} {raised}")
    return found


def test_what_the_first_rank_does_all_ranks_know(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    shared = ["{'rank': 0}", "UserError no documents", "Interrupted stopped", "KeyboardInterrupt "]
    first, second = ranks(2, _first, tmp_path / "store")
    assert first == [*shared, "KeyError 'x'"]
    assert second == [*shared, "RuntimeError 'x'"]


def test_an_error_of_one_rank_alone_carries_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "speak_up", lambda: spoken.append(1))
    monkeypatch.setattr(start, "_PATIENCE_SECONDS", 0.3)
    store, spoken = dist.HashStore(), []

    def mesh(rank: int) -> Mesh:
        return Mesh(Plan(cp=2), rank, torch.device("cpu"), {}, {"world": cast("Any", object())}, {}, store)

    shared: dict[str, bool] = {}
    second = threading.Thread(target=lambda: shared.update(same=start._is_shared(mesh(1), UserError("no text"))))
    second.start()
    assert start._is_shared(mesh(0), UserError("no text"))
    second.join()
    assert shared["same"]

    other = UserError("the disk is full")
    assert not start._is_shared(mesh(1), other)
    start._name(other, 1)
    assert str(other) == "rank 1: the disk is full"
    defect = ValueError("no such expert")
    start._name(defect, 1)
    assert defect.__notes__ == ["This was on rank 1."]
    assert len(spoken) == 2


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_and_all_are_started_again(recipe: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    timeout = ("--set", "parallel.timeout_seconds=40")  # more than a step takes on a busy machine
    ended = rank_runs.torchrun("run", recipe, "--dir", directory, *PLAN, *timeout, restarts=1, fault=("hang", 1, 5))
    assert ended.code == 0, ended.said
    assert ended.said.count("The run stops") == 1
    assert "rank 1 hangs at step 5, micro-batch 0, backward (" in ended.said
    assert "faulty_run.py" in ended.said.partition("rank 1 hangs")[2].partition("\n")[0]
    assert "Rank 1 is here:" in ended.said
    assert "rank 0 hangs" not in ended.said
    assert "going on from step 4" in ended.said
    assert [record["step"] for record in rank_runs.metrics(directory)] == list(range(1, rank_runs.TOTAL_STEPS + 1))


@pytest.mark.slow
def test_a_rank_that_dies_is_named_by_the_other(recipe: Path, tmp_path: Path) -> None:
    ended = rank_runs.torchrun("run", recipe, "--dir", tmp_path / "run", *PLAN, fault=("kill", 1, 3))
    assert ended.code == 1
    assert "rank 1 gives no sign of life; it was last at step " in ended.said


ORPHAN = """
import time
from leyden.parallel.launcher import end_with_launcher
end_with_launcher()
print("bound", flush=True)
time.sleep(60)
"""


def test_a_rank_ends_with_its_launcher() -> None:
    """A launcher that is killed outright; the rank's standard error comes to its end when the rank does."""
    launcher = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    started = time.monotonic()
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "x"}
    with subprocess.Popen(
        [sys.executable, "-c", launcher, ORPHAN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "bound\n"
        process.kill()
        assert f"rank 0 ends: process {process.pid}, which started it, is gone" in process.stderr.read()
    assert time.monotonic() - started < 50


@pytest.mark.slow
def test_ranks_whose_torchrun_is_killed_end_and_the_next_start_goes_on(recipe: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "leyden"]
    settings = (*PLAN, "--set", "stage.short.steps=4000")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with subprocess.Popen(
        [*command, "run", str(recipe), "--dir", str(directory), *settings], stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stderr is not None
        while not any((directory / "checkpoints").glob("step_*")):
            time.sleep(0.1)
        process.kill()
        said = process.stderr.read().decode()  # until both ranks have ended
    assert all(f"rank {rank} ends: process {process.pid}" in said for rank in (0, 1))
    ended = rank_runs.torchrun("run", recipe, "--dir", directory, *PLAN, "--set", "stage.short.steps=4000", "--dry-run")
    assert ended.code == 0, ended.said
    step = int(max((directory / "checkpoints").glob("step_*")).name.removeprefix("step_"))
    steps = ("--set", f"stage.short.steps={step + 1}")
    ended = rank_runs.torchrun("run", recipe, "--dir", directory, *PLAN, *steps)
    assert ended.code == 0, ended.said
    assert f"going on from step {step}" in ended.said
