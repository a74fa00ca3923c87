"""A training step on a GPU, without one: it waits for the device once, when all that it computes is on its way."""

import pytest
import torch
import toy_run
from device_ops import DeviceQueue, take_gpu_bodies

from leyden.model import HybridLM
from leyden.train import MasterAdamW, Pretrain, TrainState, train_step


def _on_device(**changes: object) -> HybridLM:
    return toy_run.tiny_model(torch.bfloat16, **changes).to("meta")


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_local_experts": 0}, {"capacity_factor": 1.25}, {"router_aux_loss": "switch", "z_loss_coef": 1e-4}],
    ids=["experts", "dense", "capacity", "switch"],
)
def test_a_step_waits_once_behind_all_its_work(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    take_gpu_bodies(monkeypatch)
    model = _on_device(**changes)
    state = TrainState(model, MasterAdamW(model))
    batches = [toy_run.counting_batch([1, 2, 7], 5, torch.Generator().manual_seed(seed)) for seed in range(2)]
    launched_at_fetch = []

    def fetch(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        launched_at_fetch.append(queue.num_launches)
        return [torch.full(x.shape, x.dtype != torch.bool, dtype=x.dtype) for x in tensors]  # nothing was skipped

    monkeypatch.setattr("leyden.train.step.fetch", fetch)
    with DeviceQueue() as queue:
        result = train_step(state, batches, Pretrain(), lr=1e-3, clip_norm=1.0)
    assert not result.skipped
    assert launched_at_fetch == [queue.num_launches]
    assert queue.launched["aten._fused_adamw_"] == 2  # matrices and vectors
    assert queue.copies == 2 * 3  # tokens, labels and bounds of each micro-batch
