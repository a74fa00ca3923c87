"""A run killed, stopped or out of disk at any step and resumed is the run never killed, bit for bit."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run

from leyden.checkpoint import pieces, training
from leyden.core.errors import Interrupted, UserError
from leyden.train import MasterAdamW, Pretrain, StepResult, Sums, TrainState, read_metrics

TIMING = {"time", "tokens_per_second", "mfu"}
TOTAL_STEPS = sum(toy_run.STAGE_STEPS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainState, list[dict[str, Any]]]:
    """The run that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole")
    state = toy_run.run(run_dir)
    return state, _metrics(run_dir)


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    records = read_metrics(run_dir / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in TIMING} for record in records]


def _assert_same(state: TrainState, run_dir: Path, whole: tuple[TrainState, list[dict[str, Any]]]) -> None:
    expected, metrics = whole
    for name, tensor in expected._tensors().items():
        assert torch.equal(state._tensors()[name], tensor), name
    assert state._values() == expected._values()
    assert _metrics(run_dir) == metrics
    assert [record["step"] for record in metrics] == list(range(1, TOTAL_STEPS + 1))


def _run_and_die(run_dir: Path, *arguments: str) -> None:
    command = [sys.executable, str(Path(toy_run.__file__)), str(run_dir), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == -signal.SIGKILL, finished.stderr


def test_each_stage_has_its_own_schedule(whole: tuple[TrainState, list[dict[str, Any]]]) -> None:
    state, metrics = whole
    first, second = metrics[: toy_run.STAGE_STEPS[0]], metrics[toy_run.STAGE_STEPS[0] :]
    for stage, records in enumerate((first, second)):
        assert {record["stage"] for record in records} == {f"stage {stage}"}
        assert [record["lr"] for record in records[:3]] == [1.5e-3, 3e-3, 3e-3]
        assert records[-1]["lr"] == pytest.approx(3e-4)
    assert (state.stage, state.stage_step, state.step) == (1, toy_run.STAGE_STEPS[1], TOTAL_STEPS)


def test_killed_in_a_save(tmp_path: Path, whole: tuple[TrainState, list[dict[str, Any]]]) -> None:
    _run_and_die(tmp_path, "--die-in-save", "6")  # at the end of the first stage
    assert training.latest_training(tmp_path) == tmp_path / "checkpoints" / "step_00000004"
    assert (tmp_path / "checkpoints" / ".step_00000006.part").is_dir()
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"stage": "stage 1", "ste')
    _assert_same(toy_run.run(tmp_path), tmp_path, whole)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000008", "step_00000011"]


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, whole: tuple[TrainState, list[dict[str, Any]]]) -> None:
    _run_and_die(tmp_path, "--die-at-step", "3")  # before the first checkpoint: starts anew
    assert training.latest_training(tmp_path) is None
    assert len(_metrics(tmp_path)) == 3
    _run_and_die(tmp_path, "--die-in-save", "6")  # at the end of the first stage
    assert training.latest_training(tmp_path) == tmp_path / "checkpoints" / "step_00000004"
    assert (tmp_path / "checkpoints" / ".step_00000006.part").is_dir()
    _run_and_die(tmp_path, "--die-at-step", "10")  # in the second stage
    assert training.latest_training(tmp_path) == tmp_path / "checkpoints" / "step_00000008"
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"stage": "stage 1", "ste')
    state = toy_run.run(tmp_path)
    _assert_same(state, tmp_path, whole)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000008", "step_00000011"]


@pytest.mark.slow
def test_killed_at_every_step(tmp_path: Path, whole: tuple[TrainState, list[dict[str, Any]]]) -> None:
    for step in range(1, TOTAL_STEPS + 1):
        _run_and_die(tmp_path, "--die-at-step", str(step))
        assert len(_metrics(tmp_path)) == step
    _assert_same(toy_run.run(tmp_path), tmp_path, whole)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param(moment, number, marks=() if (index + other) % 2 == 0 else pytest.mark.slow)
        for index, moment in enumerate(("objective", "callback", "save"))
        for other, number in enumerate((signal.SIGINT, signal.SIGTERM))
    ],
)
def test_stopped_by_a_signal(
    tmp_path: Path,
    whole: tuple[TrainState, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    number: signal.Signals,
) -> None:
    """Sent twice each time; once is not enough to lose anything, nor is twice."""
    sent = []

    def stop(now: str) -> None:
        if now == moment and not sent:
            sent.append(now)
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    class Objective(Pretrain):
        calls = 0

        def sums(self, model: Any, features: Any, batch: Any, /) -> Sums:
            self.calls += 1
            if self.calls == 2 * 3:
                stop("objective")
            return super().sums(model, features, batch)

    def callback(state: TrainState, result: StepResult) -> None:
        if state.step == 7:
            stop("callback")

    plain = pieces.save_pieces

    def write(*arguments: Any) -> list[Path]:
        stop("save")
        return plain(*arguments)

    monkeypatch.setattr(pieces, "save_pieces", write)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"everything is saved\. Run it again to go on"):
        toy_run.run(tmp_path, objective=Objective(), callbacks=(callback,))
    assert signal.getsignal(number) is before
    stopped = {"objective": 3, "callback": 7, "save": 4}[moment]
    assert len(_metrics(tmp_path)) == stopped
    assert training.latest_training(tmp_path) == tmp_path / "checkpoints" / f"step_{stopped:08d}"
    _assert_same(toy_run.run(tmp_path), tmp_path, whole)


def test_disk_full_in_a_checkpoint(
    tmp_path: Path, whole: tuple[TrainState, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = pieces.save_pieces

    def write(directory: Path, *arguments: Any) -> list[Path]:
        if "step_00000006" in directory.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(directory, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pieces, "save_pieces", write)
        with pytest.raises(UserError, match="step_00000006 could not be written: the disk is full"):
            toy_run.run(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]
    _assert_same(toy_run.run(tmp_path), tmp_path, whole)


def test_torn_checkpoint_is_passed_over(
    tmp_path: Path, whole: tuple[TrainState, list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    toy_run.run(tmp_path)
    (file,) = (tmp_path / "checkpoints" / "step_00000011").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    state = toy_run.run(tmp_path)
    assert "step_00000011 is not whole" in caplog.text
    _assert_same(state, tmp_path, whole)


@pytest.mark.parametrize("shape", [{}, {"router": "sigmoid_groups"}], ids=["softmax", "sigmoid"])
def test_float32_has_no_copies_and_resumes(tmp_path: Path, shape: dict[str, str]) -> None:
    whole = toy_run.run(tmp_path / "whole", dtype=torch.float32, **shape)
    assert all(whole.model.get_parameter(n).data_ptr() == t.data_ptr() for n, t in whole.optimizer.masters().items())

    def stop(state: TrainState, _: StepResult) -> None:
        if state.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        toy_run.run(tmp_path / "cut", dtype=torch.float32, callbacks=(stop,), **shape)
    state = toy_run.run(tmp_path / "cut", dtype=torch.float32, **shape)
    _assert_same(state, tmp_path / "cut", (whole, _metrics(tmp_path / "whole")))


def test_another_model_is_refused(tmp_path: Path) -> None:
    toy_run.run(tmp_path)
    model = toy_run.tiny_model(torch.bfloat16, num_hidden_layers=1, layer_types=("linear_attention",))
    with pytest.raises(UserError, match=r"belongs to another model: .*layers\.1\..* is unknown to this run"):
        TrainState(model, MasterAdamW(model)).resume(tmp_path)


@pytest.mark.parametrize(("saved", "resumed"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_what_is_saved_is_the_float32_weight(tmp_path: Path, saved: torch.dtype, resumed: torch.dtype) -> None:
    """A model that computes in another dtype goes on from the same masters and moments, rounded to its own."""
    before = toy_run.run(tmp_path, dtype=saved)
    after = toy_run.run(tmp_path, dtype=resumed)
    assert before._tensors().keys() == after._tensors().keys()
    for name, tensor in before._tensors().items():
        assert torch.equal(after._tensors()[name], tensor), name
    for name, master in before.optimizer.masters().items():
        parameter = after.model.get_parameter(name)
        assert torch.equal(parameter, master.to(parameter.dtype)), name
