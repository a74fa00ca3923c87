"""An objective that is not pre-training: what is minimised, divided by, logged and measured is what it says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run

from leyden.train import (
    LearningRate,
    MasterAdamW,
    Pretrain,
    Sums,
    TrainState,
    document_sums,
    fit,
    read_metrics,
    train_step,
)
from leyden.train.held_out import HeldOut, measure

UNSEEN = [[toy_run.counting_batch([5, 9], 7)], [toy_run.counting_batch([1, 2], 7)]]


@dataclass
class Certainty:
    """The probability of each document's labels, as a mean over its labels, squared; the weight counts documents."""

    counts: str = "documents"
    metrics: Sequence[str] = ("certainty",)

    def sums(self, model: Any, features: Any, batch: Any, /) -> Sums:
        nll, _ = model.token_nll(features.hidden, batch.labels)
        p = document_sums(model, (-nll).exp(), batch) / batch.cu_seqlens.diff()
        return Sums((1 - p).square().sum(), torch.tensor(len(p)), {"certainty": p.sum()})


def certainties(model: Any, batch: toy_run.Batch) -> torch.Tensor:
    """From whole logits."""
    logits = model(batch.tokens, cu_seqlens=batch.cu_seqlens)[0]
    p = logits.softmax(-1).gather(1, batch.labels[0, :, None])[:, 0]
    return torch.stack([part.mean() for part in p.split(batch.cu_seqlens.diff().tolist())])


def _state(**changes: Any) -> TrainState:
    model = toy_run.tiny_model(**changes)
    return TrainState(model, MasterAdamW(model))


def _fit(run_dir: Path, state: TrainState, objective: Any = None, **arguments: Any) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    settings = toy_run.settings(total_steps=3)
    batches, rate = toy_run.CountingBatches(9), LearningRate(lr=1e-2)
    fit(state, batches, objective or Certainty(), rate, settings, run_dir=run_dir, **arguments)
    return read_metrics(run_dir / "metrics.jsonl")


def test_a_step_minimises_its_mean_and_says_its_metrics() -> None:
    state, batches = _state(z_loss_coef=0.0), [toy_run.counting_batch([1, 2, 3], 5), toy_run.counting_batch([7], 5)]
    p = torch.cat([certainties(state.model, batch) for batch in batches])
    result = train_step(state, batches, Certainty(), lr=1e-3, clip_norm=1.0)
    assert (result.weight, result.tokens, result.skipped) == (4, 20, False)
    assert result.loss == pytest.approx((1 - p).square().mean().item(), rel=1e-5)
    assert result.metrics["certainty"] == pytest.approx(p.mean().item(), rel=1e-5)
    assert result.metrics["aux_loss"] > 0, "the routers' losses are added to whatever is minimised"
    again = _state(z_loss_coef=0.0, router_aux_loss_coef=0.0)
    assert train_step(again, batches, Certainty(), lr=1e-3, clip_norm=1.0).metrics["aux_loss"] == 0


def test_lines_of_metrics_have_its_names(tmp_path: Path) -> None:
    held_out = HeldOut(every_steps=2, batches=UNSEEN)
    state = _state()
    records = _fit(tmp_path, state, held_out=held_out)
    assert [record["documents"] for record in records] == [8, 8, 8]
    assert all(0 < record["certainty"] < 1 and record["loss"] > 0 for record in records)
    assert [[len(layer) for layer in record["expert_load"]] for record in records] == [[4, 4]] * 3
    assert not any("labels" in record or "held_out_bits_per_byte" in record for record in records)
    measured = {"held_out_loss", "held_out_certainty"}
    assert [measured & record.keys() for record in records] == [set(), measured, measured]
    model: Any = state.model.eval()
    with torch.no_grad():
        p = torch.cat([certainties(model, batch) for (batch,) in UNSEEN])
    assert records[-1]["held_out_certainty"] == pytest.approx(p.mean().item(), rel=1e-5)
    assert records[-1]["held_out_loss"] == pytest.approx((1 - p).square().mean().item(), rel=1e-5)


def test_a_fractional_weight(tmp_path: Path) -> None:
    """Twice the weight is half the mean, and the same direction for Adam."""

    class Half(Certainty):
        def sums(self, model: Any, features: Any, batch: Any, /) -> Sums:
            sums = super().sums(model, features, batch)
            return replace(sums, weight=sums.weight * 0.3125)

    batch = toy_run.counting_batch([1, 2, 3], 5)
    plain, half = (
        train_step(_state(), [batch], objective, lr=1e-3, clip_norm=1.0) for objective in (Certainty(), Half())
    )
    assert half.weight == 0.9375
    assert half.loss == pytest.approx(plain.loss / 0.3125)
    assert _fit(tmp_path, _state(), Half())[0]["documents"] == 2.5


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Certainty(metrics=("certainty", "certainty")), "'certainty', which is the name of something else"),
        (Certainty(counts="tokens"), "'tokens', which is the name of something else in metrics.jsonl; take another"),
        (Certainty(metrics=("dropped",)), "'dropped'"),
        (Certainty(metrics=("loss",)), "'loss'"),
    ],
)
def test_names_that_are_taken_are_refused(tmp_path: Path, objective: Certainty, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _fit(tmp_path, _state(), objective)


@pytest.mark.parametrize(
    "objective", [Certainty(metrics=()), Certainty(metrics=("certainty", "kl")), Certainty(metrics=("certain",))]
)
def test_metrics_that_it_does_not_list_are_refused(objective: Certainty) -> None:
    with pytest.raises(RuntimeError, match=r"Certainty lists the metrics .*it gave certainty \(\)"):
        train_step(_state(), UNSEEN[0], objective, lr=1e-3, clip_norm=1.0)


def test_metrics_that_are_no_scalars_are_refused() -> None:
    class Rows(Certainty):
        def sums(self, model: Any, features: Any, batch: Any, /) -> Sums:
            return replace(super().sums(model, features, batch), metrics={"certainty": torch.zeros(2)})

    with pytest.raises(RuntimeError, match=r"scalars which ranks add up .*it gave certainty \(2,\)"):
        train_step(_state(), UNSEEN[0], Rows(), lr=1e-3, clip_norm=1.0)


def test_a_hook_after_the_step_sees_its_result_and_comes_before_all_else(tmp_path: Path) -> None:
    """It makes every logit zero, so that the held-out loss is that of chance."""
    seen: list[Any] = []

    def silence(state: TrainState, result: Any) -> None:
        seen.append((state.step, result.weight, (tmp_path / "checkpoints").exists(), state.optimizer.num_steps))
        with torch.no_grad():
            state.optimizer.masters()["lm_head.weight"].zero_()

    state = _state(z_loss_coef=0.0)
    held_out = HeldOut(every_steps=1, batches=UNSEEN)
    records = _fit(tmp_path, state, Pretrain(), held_out=held_out, after_step=[silence])
    assert seen == [(step, 72, False, step) for step in (1, 2, 3)]
    assert all(record["held_out_loss"] == pytest.approx(math.log(32)) for record in records)
    assert measure(state, held_out, Pretrain()).metrics["held_out_loss"] == pytest.approx(math.log(32))


def test_sums_of_documents_and_their_gradient() -> None:
    batch = toy_run.counting_batch([1, 2, 3], 5)
    batch = replace(batch, cu_seqlens=torch.tensor([0, 1, 1, 9, 15], dtype=torch.int32))  # one of them is empty
    values = torch.randn(1, 15, dtype=torch.float64, requires_grad=True)
    found = document_sums(toy_run.tiny_model(), values, batch)
    expected = torch.stack([values[0, 0], values[0, :0].sum(), values[0, 1:9].sum(), values[0, 9:].sum()])
    torch.testing.assert_close(found, expected)
    upstream = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(found, values, upstream)
    assert gradient[0].tolist() == [1.0] + [3.0] * 8 + [4.0] * 6
