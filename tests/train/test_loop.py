"""The loop: it learns, logs each step once, stops when nothing is finite, and says what is wrong with the data."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run

from leyden.core.errors import Interrupted, UserError
from leyden.train import LearningRate, MasterAdamW, Pretrain, StepResult, Sums, TrainState, fit, read_metrics
from leyden.train.metrics import MetricsLog


def _fit(run_dir: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> TrainState:
    model = toy_run.tiny_model(dtype)
    state = TrainState(model, MasterAdamW(model))
    state.resume(run_dir)
    arguments: dict[str, Any] = {
        "batches": toy_run.CountingBatches(9),
        "objective": Pretrain(),
        "learning_rate": LearningRate(lr=1e-2, warmup_steps=3),
        "settings": toy_run.settings(total_steps=4),
    }
    fit(state, run_dir=run_dir, **(arguments | changes))
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learns_to_count(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    _fit(tmp_path, dtype, settings=toy_run.settings(total_steps=60, checkpoint_steps=100))
    losses = [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[0] > 3
    assert losses[-1] < 0.3


def test_a_line_of_metrics(tmp_path: Path) -> None:
    seen: list[tuple[int, StepResult]] = []
    state = _fit(tmp_path, callbacks=[lambda state, result: seen.append((state.step, result))])
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [step for step, _ in seen] == [1, 2, 3, 4]
    record, (_, result) = records[2], seen[2]
    assert record["stage"] == "toy"
    assert record["tokens"] == 3 * result.tokens == 3 * 2 * 4 * 9
    assert state.tokens == 4 * result.tokens
    assert record["loss"] == result.loss
    assert record["grad_norm"] == result.grad_norm
    assert record["lr"] == 1e-2
    assert record["mfu"] == pytest.approx(record["tokens_per_second"] * 1e5 / 1e9, abs=1e-4)
    assert [len(layer) for layer in record["expert_load"]] == [4, 4]
    assert record["max_violation"] == pytest.approx(
        sum(4 * max(layer) - 1 for layer in record["expert_load"]) / 2, abs=1e-3
    )
    assert record["dropped"] == 0
    assert record["skipped"] is False
    assert record["aux_loss"] > 0


def test_a_finished_stage_is_left_at_once(tmp_path: Path) -> None:
    state = _fit(tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("no step is left")

    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    fit(
        state,
        toy_run.CountingBatches(9),
        Pretrain(),
        LearningRate(lr=1e-2),
        toy_run.settings(total_steps=4),
        run_dir=tmp_path,
        callbacks=[never],
    )
    assert state.step == 4
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4
    checkpoint = tmp_path / "checkpoints" / "step_00000004"
    assert all(path.stat().st_mtime_ns in before for path in checkpoint.iterdir())


def test_keeps_the_newest_checkpoints(tmp_path: Path) -> None:
    _fit(tmp_path, settings=toy_run.settings(total_steps=7, checkpoint_steps=2, keep_checkpoints=3))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000004",
        "step_00000006",
        "step_00000007",
    ]


class NotFinite(Pretrain):
    """The gradient is infinite in the steps that ``broken`` names (one micro-batch a step)."""

    def __init__(self, broken: Callable[[int], bool]) -> None:
        self.broken, self.calls = broken, 0

    def sums(self, model: Any, features: Any, batch: Any, /) -> Sums:
        sums = super().sums(model, features, batch)
        self.calls += 1
        return replace(sums, loss=sums.loss * float("inf")) if self.broken(self.calls) else sums


def test_stops_when_nothing_is_finite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = toy_run.settings(total_steps=20, micro_batches=1, max_skipped_steps=3, checkpoint_steps=2)
    with pytest.raises(UserError, match=r"3 steps in a row were skipped, from step 6 on; .* not finite.*lower"):
        _fit(tmp_path, objective=NotFinite(lambda step: step == 3 or step >= 6), settings=settings)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records if record["skipped"]] == [3, 6, 7, 8]
    assert records[2]["grad_norm"] is None
    assert "step 3: the loss or its gradient is not finite" in caplog.text


def test_skipped_steps_are_counted_across_a_resume(tmp_path: Path) -> None:
    """Steps 2 and 3 before the stop, 4 after it."""
    settings = toy_run.settings(total_steps=20, micro_batches=1, max_skipped_steps=3)

    def stop(state: TrainState, _: StepResult) -> None:
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        _fit(tmp_path, objective=NotFinite(lambda step: step >= 2), settings=settings, callbacks=[stop])
    with pytest.raises(UserError, match=r"3 steps in a row were skipped, from step 2 on; .* not finite"):
        _fit(tmp_path, objective=NotFinite(lambda step: True), settings=settings)


def test_steps_without_a_label_are_skipped_counted_and_bounded(tmp_path: Path) -> None:
    class Unlabelled(toy_run.CountingBatches):
        def __next__(self) -> toy_run.Batch:
            batch = super().__next__()
            if self.served == 2 or self.served >= 5:
                batch.labels.fill_(-100)
            return batch

    settings = toy_run.settings(total_steps=20, micro_batches=1, max_skipped_steps=3, checkpoint_steps=2)
    with pytest.raises(UserError, match=r"from step 5 on; of the last, none of its 36 .*train.max_skipped_steps=N"):
        _fit(tmp_path, batches=Unlabelled(9), settings=settings)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records if record["skipped"]] == [2, 5, 6, 7]
    assert [record["labels"] for record in records] == [36, 0, 36, 36, 0, 0, 0]
    assert records[1]["loss"] is None


def test_data_that_ends(tmp_path: Path) -> None:
    class Short(toy_run.CountingBatches):
        def __next__(self) -> toy_run.Batch:
            if self.served == 5:
                raise StopIteration
            return super().__next__()

    with pytest.raises(UserError, match="stage 'toy': the data ended before step 3 of 4"):
        _fit(tmp_path, batches=Short(9))


def test_metrics_survive_a_torn_line_and_later_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, last=0)
    for step in range(1, 6):
        log.append({"step": step, "loss": 1 / step})
    with path.open("ab") as file:
        file.write(b'{"step": 6, "lo')
    log = MetricsLog(path, last=3)
    log.append({"step": 4, "loss": 0.5})
    expected = [*({"step": step, "loss": 1 / step} for step in range(1, 4)), {"step": 4, "loss": 0.5}]
    assert [json.loads(line) for line in path.read_text().splitlines()] == expected
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"step": 5, "loss": float("nan")})
    assert read_metrics(path) == expected


def test_a_line_without_its_end_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read_metrics(path) == [{"step": 1}]
    assert read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_metrics_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, last=0)
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics.jsonl could not be written: the disk is full"):
        log.append({"step": 1})


def test_batches_are_taken_in_order(tmp_path: Path) -> None:
    """Two micro-batches a step, each once."""
    batches = toy_run.CountingBatches(9)
    _fit(tmp_path, batches=batches)
    assert batches.served == 8
    assert len(list(islice(batches, 2))) == 2
