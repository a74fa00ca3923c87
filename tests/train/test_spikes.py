"""Spikes: when a step is one, and what becomes of it, also in runs that are stopped and resumed."""

import functools
import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
import toy_run

from leyden.core.errors import UserError
from leyden.train import LearningRate, MasterAdamW, Pretrain, TrainState, fit, read_metrics
from leyden.train.spikes import SpikeSettings, SpikeWatch, StepLimits

STEPS = 26
TIMING = {"time", "tokens_per_second", "mfu"}


class BadBatches(toy_run.CountingBatches):
    """Counting sequences, but for some micro-batches, which count backwards."""

    def __init__(self, bad: tuple[int, ...]) -> None:
        super().__init__(9)
        self.bad = bad

    def __next__(self) -> toy_run.Batch:
        batch = super().__next__()
        return toy_run.Batch(batch.tokens, batch.tokens, batch.cu_seqlens) if self.served in self.bad else batch


def _seed() -> None:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)


def _run(run_dir: Path, action: str, *, bad: tuple[int, ...] = (43, 44), steps: int = STEPS, **changes: Any) -> Any:
    _seed()
    model = toy_run.tiny_model()
    state = TrainState(model, MasterAdamW(model))
    state.resume(run_dir)
    spikes = SpikeSettings(action=action, window_steps=16, threshold=12, **changes)
    settings = toy_run.settings(total_steps=steps, spikes=spikes, checkpoint_steps=5)
    fit(
        state,
        BadBatches(bad),
        Pretrain(),
        LearningRate(lr=1e-2, schedule="constant"),
        settings,
        run_dir=run_dir,
        batch_facts=lambda before, count: {"batches": [before["served"], before["served"] + count - 1]},
    )
    return state


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[TrainState, Path]]:
    """The run of an action that nothing disturbs, taken once, and its folder."""

    @functools.cache
    def run(action: str) -> tuple[TrainState, Path]:
        folder = tmp_path_factory.mktemp(action)
        return _run(folder, action), folder

    return run


def _lines(path: Path) -> list[dict[str, Any]]:
    return [{name: v for name, v in line.items() if name not in TIMING} for line in read_metrics(path)]


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_limits_are_medians_and_deviations() -> None:
    watch = SpikeWatch(SpikeSettings(window_steps=32, threshold=5))
    draws = np.random.default_rng(0)
    losses, norms = draws.normal(3, 0.2, 40).tolist(), np.exp(draws.normal(0, 0.5, 40)).tolist()
    for number, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if number < 8:
            assert watch.limits() == StepLimits()
        watch.see(loss, norm)
    newest, logs = losses[-32:], [math.log(norm) for norm in norms[-32:]]
    spread = 1.4826 * median(abs(loss - median(newest)) for loss in newest)
    log_spread = 1.4826 * median(abs(one - median(logs)) for one in logs)
    assert watch.limits().loss == pytest.approx(median(newest) + 5 * spread)
    assert watch.limits().grad_norm == pytest.approx(math.exp(median(logs) + 5 * log_spread))
    for _ in range(5):
        watch.see(50.0, 1e3)
        watch.see(math.nan, 1.0)
    assert watch.limits().loss < 6, "a few spikes do not make more of them usual"
    again = SpikeWatch(SpikeSettings(window_steps=32, threshold=5))
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert again.limits() == watch.limits()
    again.enter_stage(1)
    assert again.limits() == StepLimits()


def test_a_spike_is_logged_with_its_batches_and_nothing_else_happens(tmp_path: Path) -> None:
    _run(tmp_path / "calm", "log", bad=())
    assert not (tmp_path / "calm" / "spikes.jsonl").exists()
    _run(tmp_path / "run", "log")
    (line,) = _lines(tmp_path / "run" / "spikes.jsonl")
    assert (line["number"], line["stage"], line["step"], line["action"]) == (1, "toy", 22, "log")
    assert line["batches"] == [42, 43]
    assert line["loss"] > line["loss_limit"] or line["grad_norm"] > line["grad_norm_limit"]
    assert not any(record["skipped"] for record in _lines(tmp_path / "run" / "metrics.jsonl"))


def test_skip_leaves_the_update_out(tmp_path: Path, whole: Callable[[str], tuple[TrainState, Path]]) -> None:
    """The run is then that of a loop which passes that step over."""
    skipped, folder = whole("skip")
    assert [r["step"] for r in _lines(folder / "metrics.jsonl") if r["skipped"]] == [22]
    before = _run(tmp_path / "before", "skip", steps=21)
    after = _run(tmp_path / "after", "skip", steps=22)
    assert _same(before.model.state_dict(), after.model.state_dict())
    assert skipped.skipped_in_a_row == 0


def test_rewind_goes_on_from_the_checkpoint_without_the_batches(
    tmp_path: Path, whole: Callable[[str], tuple[TrainState, Path]]
) -> None:
    """Steps 21 and 22 had micro-batches 41 to 44; step 21 is taken again with 45 and 46."""
    state, folder = whole("rewind")
    (line,) = _lines(folder / "spikes.jsonl")
    assert (line["step"], line["action"], line["to_step"]) == (22, "rewind", 20)
    records = _lines(folder / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert state.step == STEPS
    # Beside a run whose batches leave 41 to 44 out from the first.
    plain = _run(tmp_path / "plain", "log", bad=(), steps=20)
    assert _same(plain.model.state_dict(), _state_at(tmp_path / "plain").model.state_dict())
    assert records[:20] == _lines(tmp_path / "plain" / "metrics.jsonl")
    assert records[20]["loss"] != line["loss"]


def _state_at(run_dir: Path) -> TrainState:
    model = toy_run.tiny_model()
    state = TrainState(model, MasterAdamW(model))
    assert state.resume(run_dir)
    return state


@pytest.mark.parametrize(("action", "stop"), [("skip", 18), ("rewind", 18), ("rewind", 23)])
def test_a_run_that_was_stopped_and_resumed_is_the_same(
    action: str, stop: int, tmp_path: Path, whole: Callable[[str], tuple[TrainState, Path]]
) -> None:
    undisturbed, folder = whole(action)

    class KilledError(Exception):
        pass

    class Dies(BadBatches):
        def __next__(self) -> toy_run.Batch:
            if self.served == 2 * stop + 1:
                raise KilledError
            return super().__next__()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "BadBatches", Dies)
        with pytest.raises(KilledError):
            _run(tmp_path / "run", action)
    resumed = _run(tmp_path / "run", action)
    assert _same(undisturbed.model.state_dict(), resumed.model.state_dict())
    for name in ("metrics.jsonl", "spikes.jsonl"):
        assert _lines(tmp_path / "run" / name) == _lines(folder / name), name


def test_going_back_ends(tmp_path: Path) -> None:
    """Every batch from 43 on is bad, so that other batches do not help."""
    with pytest.raises(UserError, match=r"gone back to step 20 2 times.*at step 2\d; .*Lower the learning rate"):
        _run(tmp_path, "rewind", bad=tuple(range(43, 99)), max_rewinds=2)


def test_without_a_checkpoint_a_spike_is_only_logged(tmp_path: Path) -> None:
    _seed()
    model = toy_run.tiny_model()
    state = TrainState(model, MasterAdamW(model))
    spikes = SpikeSettings(action="rewind", window_steps=16, threshold=12)
    settings = toy_run.settings(total_steps=23, spikes=spikes, checkpoint_steps=100)
    fit(state, BadBatches((43, 44)), Pretrain(), LearningRate(lr=1e-2, schedule="constant"), settings, run_dir=tmp_path)
    (line,) = _lines(tmp_path / "spikes.jsonl")
    assert line["action"] == "log"
    assert "no checkpoint" in line["why"]
