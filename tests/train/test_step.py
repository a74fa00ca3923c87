"""One step: sums divided once, clipping, skipped steps; float64 shows that the sums are right."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import toy_run

from leyden.model import HybridLM, router_losses
from leyden.train import MasterAdamW, Pretrain, StepResult, Sums, TrainState, sums_of_row, train_step

DENSE: dict[str, Any] = {"num_local_experts": 0}


def _state(dtype: torch.dtype = torch.float64, **changes: Any) -> TrainState:
    model = toy_run.tiny_model(dtype, **changes)
    return TrainState(model, MasterAdamW(model))


def _step(state: TrainState, batches: list[toy_run.Batch], *, clip_norm: float = 1e9) -> StepResult:
    return train_step(state, batches, Pretrain(), lr=1e-3, clip_norm=clip_norm)


def _micro_batches() -> list[toy_run.Batch]:
    generator = torch.Generator().manual_seed(0)
    return [toy_run.counting_batch([s, 2 * s, 7], 5, generator) for s in (1, 4, 9)]


def _as_one(batches: list[toy_run.Batch]) -> toy_run.Batch:
    tokens = torch.cat([b.tokens for b in batches], dim=1)
    labels = torch.cat([b.labels for b in batches], dim=1)
    return toy_run.Batch(tokens, labels, torch.arange(0, tokens.shape[1] + 1, 5, dtype=torch.int32))


@pytest.mark.parametrize("clip_norm", [1e9, 0.01])
def test_micro_batches_equal_one_batch(clip_norm: float) -> None:
    """A dense model, since the balance loss is not linear in the batch."""
    batches = _micro_batches()
    assert len({int((b.labels >= 0).sum()) for b in batches}) == 3, "the counts must differ"
    many, one = _state(**DENSE), _state(**DENSE)
    for _ in range(3):
        a, b = _step(many, batches, clip_norm=clip_norm), _step(one, [_as_one(batches)], clip_norm=clip_norm)
        assert math.isclose(a.loss, b.loss, rel_tol=1e-10)
        assert math.isclose(a.metrics["aux_loss"], b.metrics["aux_loss"], rel_tol=1e-10)
        assert math.isclose(a.grad_norm, b.grad_norm, rel_tol=1e-10)
        assert (a.tokens, a.weight) == (b.tokens, b.weight) == (45, sum(int((x.labels >= 0).sum()) for x in batches))
    for (name, x), y in zip(many.model.named_parameters(), one.model.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10, msg=name)


def test_gradient_is_that_of_the_mean_loss() -> None:
    """The accumulated gradient against a plain forward of logits and a mean over all labels, by autograd."""
    state = _state(**DENSE, z_loss_coef=0.0)
    batches = _micro_batches()
    grad_norm = _step(state, batches).grad_norm

    plain: HybridLM = _state(**DENSE).model
    logits = torch.cat([plain(b.tokens, cu_seqlens=b.cu_seqlens)[0] for b in batches])
    loss = torch.nn.functional.cross_entropy(logits, torch.cat([b.labels[0] for b in batches]))
    loss.backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in plain.parameters()])
    assert math.isclose(grad_norm, float(expected), rel_tol=1e-10)


def test_auxiliary_loss_is_the_routers_mean() -> None:
    """Added once per label, although it is a mean over all tokens, labelled or not."""
    state = _state(z_loss_coef=0.0, router_z_loss_coef=0.1)
    batch = _micro_batches()[0]
    assert int((batch.labels >= 0).sum()) < batch.labels.numel()
    features = state.model.features(batch.tokens, cu_seqlens=batch.cu_seqlens)
    expected = float(router_losses(state.model.config, features.routings).loss.detach())
    assert math.isclose(_step(state, [batch]).metrics["aux_loss"], expected, rel_tol=1e-10)


def test_router_losses_weigh_by_labels() -> None:
    """Two batches with routers: the auxiliary loss per label is the weighted mean of theirs."""
    first, second, _ = _micro_batches()
    results = [_step(_state(), [first]), _step(_state(), [second])]
    both = _step(_state(), [first, second])
    labels = [r.weight for r in results]
    assert labels[0] != labels[1]

    def weighted(values: list[float]) -> float:
        return sum(n * value for n, value in zip(labels, values, strict=True)) / sum(labels)

    assert math.isclose(both.metrics["aux_loss"], weighted([r.metrics["aux_loss"] for r in results]), rel_tol=1e-10)
    assert math.isclose(
        both.metrics["expert_load"][1][2], weighted([r.metrics["expert_load"][1][2] for r in results]), rel_tol=1e-6
    )
    assert both.metrics["aux_loss"] > 0.01
    for layer in both.metrics["expert_load"]:
        assert math.isclose(sum(layer), 1, rel_tol=1e-6)


def test_dropped_share_is_reported() -> None:
    generous, tight = (_step(_state(capacity_factor=c), _micro_batches()) for c in (4.0, 0.5))
    assert generous.metrics["dropped"] == 0
    assert 0.4 < tight.metrics["dropped"] < 1


def test_clipping_is_that_of_torch() -> None:
    """Against clip_grad_norm_ and torch's AdamW in float64, on the same gradients."""
    state = _state(**DENSE)
    plain = _state(**DENSE).model
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    state.optimizer = MasterAdamW(state.model, state.optimizer.config.model_copy(update={"weight_decay": 0.0}))
    for batch in _micro_batches():
        result = _step(state, [batch], clip_norm=0.05)
        assert result.grad_norm > 0.05
        reference.zero_grad()
        sums = sums_of_row(Pretrain(), plain, batch)
        (sums.loss / sums.weight).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        reference.step()
    for (name, x), y in zip(state.model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(x, y[1], rtol=0, atol=1e-8, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_non_finite_step_changes_nothing(dtype: torch.dtype) -> None:
    state = _state(dtype)
    batches = _micro_batches()
    _step(state, batches)
    everything = state._tensors() | state.model.state_dict()
    before = {name: tensor.clone() for name, tensor in everything.items()}

    class Broken(Pretrain):
        def sums(self, model: Any, features: Any, batch: Any, /) -> Sums:
            sums = super().sums(model, features, batch)
            return replace(sums, loss=sums.loss * float("nan"))

    result = train_step(state, batches, Broken(), lr=1e-3, clip_norm=1.0)
    assert result.skipped
    assert math.isnan(result.grad_norm)
    assert state.optimizer.num_steps == 1
    assert (state.step, state.skipped_in_a_row) == (2, 1)
    for name, tensor in everything.items():
        assert torch.equal(tensor, before[name]), name
    assert not _step(state, batches).skipped
    assert (state.skipped_in_a_row, state.optimizer.num_steps) == (0, 2)


def test_a_step_without_a_label_changes_nothing() -> None:
    state = _state()
    _step(state, _micro_batches())
    everything = state._tensors() | state.model.state_dict()
    before = {name: tensor.clone() for name, tensor in everything.items()}
    batch = toy_run.counting_batch([1, 2], 4)
    batch.labels.fill_(-100)
    result = _step(state, [batch])
    assert (result.skipped, result.weight, result.tokens) == (True, 0, 8)
    assert math.isnan(result.loss)
    assert (state.step, state.skipped_in_a_row, state.optimizer.num_steps) == (2, 1, 1)
    for name, tensor in everything.items():
        assert torch.equal(tensor, before[name]), name


def test_an_unlabelled_micro_batch_counts_nothing() -> None:
    first, second, _ = _micro_batches()
    second.labels.fill_(-100)
    assert _step(_state(), [first, second]).loss == _step(_state(), [first]).loss


def test_multi_token_prediction_is_logged_by_itself() -> None:
    """Each module's loss over its own labels; the loss is what it is without, and the rest is in ``aux_loss``."""
    modules = {"num_nextn_predict_layers": 2, "router_aux_loss_coef": 0.0}
    batches, weight = _micro_batches(), 0.3
    state = _state(**modules)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    result = train_step(state, batches, Pretrain(), lr=1e-3, clip_norm=1e9, mtp_weight=weight)
    alone = _step(_state(**modules), batches)
    assert result.loss == alone.loss
    assert not any(name.startswith("mtp") for name in alone.metrics)
    assert {name for name in result.metrics if name.startswith("mtp")} == {"mtp_loss_1", "mtp_loss_2"}
    labels = [sum(int((b.labels.view(-1, 5)[:, k:] >= 0).sum()) for b in batches) for k in (1, 2)]
    nats = sum(result.metrics[f"mtp_loss_{k}"] * count for k, count in enumerate(labels, start=1))
    added = result.metrics["aux_loss"] - alone.metrics["aux_loss"]
    assert math.isclose(added, weight / 2 * nats / result.weight, rel_tol=1e-9)
    assert all(not torch.equal(p, before[name]) for name, p in state.model.named_parameters() if p.ndim > 1)
