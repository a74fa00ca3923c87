"""Runs whose matrix products are of 8-bit tiles: where they are refused, and that one goes on as if never stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run

from leyden.core.errors import Interrupted, UserError
from leyden.model import HybridLM, ModelConfig
from leyden.model.fp8 import Fp8Linear, use_fp8
from leyden.model.lora import LoraConfig
from leyden.parallel import ParallelConfig
from leyden.train import Pretrain, RunSettings, StepResult, TrainState, build_state, train_step
from leyden.train.fp8 import fp8_problem

SHAPE = toy_run.tiny_model().config


def state_of(recompute: str = "none") -> TrainState:
    settings = RunSettings(dtype="bfloat16", fp8="blocks", seed=4)
    how = ParallelConfig.model_validate({"activation_checkpointing": recompute})
    return build_state(SHAPE, settings, row_tokens=64, parallel_config=how)


def test_a_run_learns_and_its_masters_are_not_rounded() -> None:
    state = state_of()
    assert isinstance(state.model, HybridLM)
    assert sum(isinstance(module, Fp8Linear) for module in state.model.modules()) > 4
    batch = toy_run.counting_batch([1, 5, 9], 30)
    losses = [train_step(state, [batch], Pretrain(), lr=3e-3, clip_norm=1.0).loss for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    masters = state.optimizer.masters()
    assert all(master.dtype == torch.float32 for master in masters.values())
    name = "layers.0.self_attn.qkv_proj.weight"
    assert not torch.equal(masters[name], masters[name].bfloat16().float())
    assert state.model.get_parameter(name).dtype == torch.bfloat16


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_changes_no_bit(recompute: str) -> None:
    batch = toy_run.counting_batch([1, 5, 9], 30)
    found = []
    for mode in ("none", recompute):
        state = state_of(mode)
        for _ in range(2):
            train_step(state, [batch], Pretrain(), lr=3e-3, clip_norm=1.0)
        found.append(state.optimizer.masters())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = toy_run.tiny_model

    def in_tiles(*arguments: Any, **changes: Any) -> HybridLM:
        model = plain(*arguments, **changes)
        use_fp8(model)
        return model

    def stop(state: TrainState, result: StepResult) -> None:
        if state.step == 5:
            raise Interrupted

    without = toy_run.run(tmp_path / "without")
    monkeypatch.setattr(toy_run, "tiny_model", in_tiles)
    whole = toy_run.run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        toy_run.run(tmp_path / "stopped", callbacks=(stop,))
    again = toy_run.run(tmp_path / "stopped")
    for name, tensor in whole._tensors().items():
        assert torch.equal(again._tensors()[name], tensor), name
    name = "layers.0.self_attn.qkv_proj.weight"
    assert not torch.equal(without.optimizer.masters()[name], whole.optimizer.masters()[name])


@pytest.mark.parametrize(
    ("changes", "adapters", "said"),
    [
        ({"tp": 2}, False, "parallel.tp = 2 would cut them"),
        ({"cp": 2, "ep": 4}, False, "parallel.cp = 2, parallel.ep = 4 would cut them"),
        ({"compile": True}, False, "does not compile"),
        ({}, True, "train.lora leaves them as they are"),
    ],
)
def test_what_would_not_be_exact_is_refused(changes: dict[str, Any], adapters: bool, said: str) -> None:
    problem = fp8_problem(ParallelConfig(**changes), adapters=adapters)
    assert problem is not None and said in problem


def test_a_state_is_not_built_where_it_would_not_be_exact() -> None:
    lora = LoraConfig()
    with pytest.raises(UserError, match=r"train\.lora leaves them as they are"):
        build_state(ModelConfig(), RunSettings(dtype="float32", fp8="blocks", lora=lora), row_tokens=8)
    assert fp8_problem(ParallelConfig(pp=2, dp_shard=2, dp_replicate=2), adapters=False) is None
