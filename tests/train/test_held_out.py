"""The loss on held-out documents changes nothing of the training; what measures it, and where metrics go besides."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy_run

from leyden.core.errors import UserError
from leyden.data.loader.held_out import HeldOutPart
from leyden.train import LearningRate, MasterAdamW, Pretrain, TrainState, fit, read_metrics, sinks
from leyden.train.held_out import HeldOut, measure
from leyden.train.sinks import open_sinks

UNSEEN = [[toy_run.counting_batch([5, 9], 7)], [toy_run.counting_batch([1, 2], 7)]]
HELD_OUT = HeldOut(every_steps=2, batches=UNSEEN, num_bytes=20)
CLOCK = {"time", "tokens_per_second", "mfu"}


def _fit(run_dir: Path, **changes: Any) -> TrainState:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = toy_run.tiny_model(capacity_factor=0.5)
    state = TrainState(model, MasterAdamW(model))
    state.resume(run_dir)
    arguments: dict[str, Any] = {"settings": toy_run.settings(total_steps=5)} | changes
    fit(state, toy_run.CountingBatches(9), Pretrain(), LearningRate(lr=1e-2), run_dir=run_dir, **arguments)
    return state


def test_it_is_measured_now_and_then_and_changes_nothing(tmp_path: Path) -> None:
    plain = _fit(tmp_path / "plain")
    measured = _fit(tmp_path / "measured", held_out=HELD_OUT)
    for (name, one), (_, other) in zip(
        plain.model.state_dict().items(), measured.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    records = read_metrics(tmp_path / "measured" / "metrics.jsonl")
    assert [record["step"] for record in records if "held_out_loss" in record] == [2, 4, 5]  # and at the stage's end
    names = CLOCK | {"held_out_loss", "held_out_bits_per_byte"}
    without = [
        [{k: v for k, v in r.items() if k not in names} for r in read_metrics(tmp_path / d / "metrics.jsonl")]
        for d in ("plain", "measured")
    ]
    assert without[0] == without[1]


def test_it_is_the_mean_loss_without_drops(tmp_path: Path) -> None:
    state = _fit(tmp_path, held_out=HELD_OUT)
    found = measure(state, HELD_OUT, Pretrain()).metrics
    model: Any = state.model.eval()
    with torch.no_grad():
        nats = labels = 0.0
        for (batch,) in UNSEEN:
            logits = model(batch.tokens, cu_seqlens=batch.cu_seqlens)[0].double()
            nats += float(torch.nn.functional.cross_entropy(logits, batch.labels[0], reduction="sum"))
            labels += batch.labels.numel()
    assert found["held_out_loss"] == pytest.approx(nats / labels, rel=1e-5)
    assert found["held_out_bits_per_byte"] == pytest.approx(nats / math.log(2) / 20, rel=1e-5)


def test_parts_are_measured_by_themselves_in_the_same_pass(tmp_path: Path) -> None:
    state = _fit(tmp_path)
    model: Any = state.model.eval()
    batches = [[_with_parts(batch, [number % 3, 2]) for batch in step] for number, step in enumerate(UNSEEN)]
    documents = [[0.0, 0], [0.0, 0], [0.0, 0]]
    with torch.no_grad():
        for (batch,) in batches:
            logits = model(batch.tokens, cu_seqlens=batch.cu_seqlens)[0].double()
            nats = torch.nn.functional.cross_entropy(logits, batch.labels[0], reduction="none").split(7)
            for part, of_document in zip(batch.per_document["part"].tolist(), nats, strict=True):
                documents[part][0] += float(of_document.sum())
                documents[part][1] += len(of_document)
    parts = [
        HeldOutPart(*cell, int(n), 10) for cell, (_, n) in zip((("a", 0), ("b", 0), ("b", 1)), documents, strict=True)
    ]
    held_out = HeldOut(2, batches, 30, parts, length_bounds=(5,))
    found = measure(state, held_out, Pretrain())
    assert found.metrics["held_out_loss"] == measure(state, HELD_OUT, Pretrain()).metrics["held_out_loss"]
    assert found.nats == pytest.approx([nats for nats, _ in documents], rel=1e-5)
    divided = found.divided()
    assert set(divided["sources"]) == {"a", "b"}
    of_b = divided["sources"]["b"]
    assert of_b["loss"] == pytest.approx(
        (documents[1][0] + documents[2][0]) / (documents[1][1] + documents[2][1]), rel=1e-5
    )
    assert of_b["bits_per_byte"] == pytest.approx((documents[1][0] + documents[2][0]) / math.log(2) / 20, rel=1e-5)
    assert divided["lengths"].keys() == {"1-5", "6-"}
    assert divided["lengths"]["6-"]["labels"] == documents[2][1]


def _with_parts(batch: toy_run.Batch, parts: list[int]) -> Any:
    return SimpleNamespace(**vars(batch), per_document={"part": torch.tensor(parts)})


def test_every_line_has_the_time_of_day(tmp_path: Path) -> None:
    _fit(tmp_path)
    times = [record["time"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert times == sorted(times)
    assert times[0].endswith("+00:00")


def test_tensorboard_gets_each_step_once_across_a_resume(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for total, last in ((3, 0), (5, 3)):
        with open_sinks(["tensorboard"], tmp_path, last, {}) as opened:
            _fit(tmp_path, settings=toy_run.settings(total_steps=total), held_out=HELD_OUT, sinks=opened)
    read = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    records = read_metrics(tmp_path / "metrics.jsonl")
    found = [(event.step, event.value) for event in read.Scalars("loss")]
    assert found == [(record["step"], pytest.approx(record["loss"])) for record in records]
    assert {event.step for event in read.Scalars("held_out_loss")} >= {2, 4, 5}


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with open_sinks(["wandb"], tmp_path, 0, {"train": {"seed": 0}}) as opened:
        _fit(tmp_path, sinks=opened)
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"grad_norm" in written.read_bytes()


def test_a_sink_whose_package_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"), open_sinks(["wandb"], tmp_path, 0, {}):
        pass


def test_sinks_get_what_the_file_gets(tmp_path: Path) -> None:
    class Kept:
        def __init__(self) -> None:
            self.records: list[Any] = []

        def append(self, record: Any, /) -> None:
            self.records.append(json.loads(json.dumps(record)))

        def close(self) -> None: ...

    kept = Kept()
    _fit(tmp_path, sinks=[kept])
    assert kept.records == read_metrics(tmp_path / "metrics.jsonl")
