"""Training goes on while a checkpoint is written: what is written is the moment of the save, and no error is lost."""

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run

from leyden.checkpoint import pieces
from leyden.checkpoint.training import latest_training
from leyden.core.errors import Interrupted, UserError
from leyden.train import MasterAdamW, Pretrain, StepResult, TrainState, read_metrics, train_step


class HeldSaves:
    """Saves that write nothing until :attr:`go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        plain = pieces.save_pieces

        def held(*arguments: Any) -> list[Path]:
            assert self.go.wait(60)
            return plain(*arguments)

        monkeypatch.setattr(pieces, "save_pieces", held)


def _state(seed: int) -> TrainState:
    model = toy_run.tiny_model(torch.bfloat16)
    torch.manual_seed(seed)
    return TrainState(model, MasterAdamW(model), async_checkpoint=True)


def _train(state: TrainState, batches: toy_run.CountingBatches, steps: int) -> None:
    for _ in range(steps):
        train_step(state, [next(batches)], Pretrain(), lr=1e-2, clip_norm=1.0)
        state.check_saving()


def test_what_is_written_is_the_moment_of_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = HeldSaves(monkeypatch)
    state, batches = _state(0), toy_run.CountingBatches(9)
    state.enter_stage(0, batches)
    for step in (2, 4):  # the second save reuses the memory of the first
        saves.go.clear()
        _train(state, batches, 2)
        then = {name: tensor.clone() for name, tensor in state._tensors().items()}
        values = state._values()
        state.save(tmp_path, keep=1)
        drawn = torch.rand(3)
        _train(state, batches, 2)
        assert state._background is not None and state._background.running
        assert not all(torch.equal(tensor, then[name]) for name, tensor in state._tensors().items())
        assert latest_training(tmp_path) != tmp_path / "checkpoints" / f"step_{step:08d}"
        saves.go.set()
        state.finish_saving()
        resumed = _state(9)
        assert resumed.resume(tmp_path)
        assert torch.equal(torch.rand(3), drawn)
        for name, tensor in resumed._tensors().items():
            assert torch.equal(tensor, then[name]), name
        resumed.enter_stage(0, toy_run.CountingBatches(9))
        assert resumed._values() == values
        assert state.step == step + 2
        state.step -= 2


def test_a_run_ends_as_one_that_waits_for_its_saves(tmp_path: Path) -> None:
    one, other = (toy_run.run(tmp_path / str(flag), async_checkpoint=flag) for flag in (False, True))
    for name, tensor in one._tensors().items():
        assert torch.equal(other._tensors()[name], tensor), name
    for run_dir in (tmp_path / "False", tmp_path / "True"):
        names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
        assert names == ["step_00000008", "step_00000011"]


def test_an_error_surfaces_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> list[Path]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pieces, "save_pieces", full)

    def let_it_fail(state: TrainState, _: StepResult) -> None:
        while state._background is not None and state._background.running:
            time.sleep(0.01)

    with pytest.raises(UserError, match="step_00000004 could not be written: the disk is full"):
        toy_run.run(tmp_path, callbacks=(let_it_fail,), async_checkpoint=True)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) in (4, 5)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_sigterm_waits_for_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pieces.save_pieces

    def slow(*arguments: Any) -> list[Path]:
        time.sleep(0.3)
        return plain(*arguments)

    monkeypatch.setattr(pieces, "save_pieces", slow)

    def stop(state: TrainState, _: StepResult) -> None:
        if state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after step 5; everything is saved"):
        toy_run.run(tmp_path, callbacks=(stop,), async_checkpoint=True)
    assert latest_training(tmp_path) == tmp_path / "checkpoints" / "step_00000005"
