"""A state that is trained beside another, in its checkpoints: saved, resumed, gone back with, begun anew."""

from pathlib import Path

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import HybridLM, preset
from leyden.train import MasterAdamW, TrainState


def state_of(seed: int, dtype: torch.dtype = torch.float32) -> TrainState:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "head_dim": 8, "rotary_dim": 4}
    shape = preset("tiny", vocab_size=64, num_hidden_layers=1, **sizes)
    return TrainState(model := HybridLM(shape, seed=seed).to(dtype), MasterAdamW(model))


def moved(state: TrainState, by: float) -> None:
    """As if a step had been taken."""
    for name, tensor in state.optimizer.tensors().items():
        if not name.startswith("master."):
            tensor.add_(by)
    with torch.no_grad():
        for master in state.optimizer.masters().values():
            master.add_(by)
    state.optimizer.round_into_model()
    state.optimizer.num_steps += 1
    state.count(8, skipped=False)


def contents(state: TrainState) -> list[torch.Tensor]:
    of_model = [weight.local for weight in state.optimizer.weights.values()]
    every = [*state.optimizer.masters().values(), *state.optimizer.tensors().values(), *of_model]
    return [tensor.clone() for tensor in every]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def joined(state: TrainState, other: TrainState, *, goes_on: bool = False) -> None:
    def begin() -> None:
        with torch.no_grad():
            for master in other.optimizer.masters().values():
                master.fill_(0.5)
        other.optimizer.round_into_model()

    state.join("critic", other, begin, goes_on=goes_on)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_saved_and_resumed_with_the_other(tmp_path: Path, dtype: torch.dtype) -> None:
    state, other = state_of(1, dtype), state_of(2, dtype)
    state.count(8, skipped=False)
    joined(state, other)
    assert other.step == state.step == 1, "its steps are those of the state"
    for by in (0.25, 0.5):
        moved(state, by)
        moved(other, -by)
    state.save(tmp_path, keep=2)
    expected = [contents(state), contents(other)]
    again, beside = state_of(3, dtype), state_of(4, dtype)
    assert again.resume(tmp_path), "before the other is there"
    assert same(contents(again), expected[0])
    joined(again, beside, goes_on=True)
    assert same(contents(beside), expected[1])
    assert (beside.step, beside.optimizer.num_steps) == (3, 2)
    again.leave("critic")
    again.save(tmp_path / "later", keep=1)
    alone = state_of(5, dtype)
    assert alone.resume(tmp_path / "later") and same(contents(alone), expected[0])
    with pytest.raises(UserError, match="has no critic, which is trained beside the model"):
        joined(alone, state_of(6, dtype), goes_on=True)


def test_it_goes_back_with_the_other(tmp_path: Path) -> None:
    state, other = state_of(1), state_of(2)
    state.count(8, skipped=False)
    state.save(tmp_path, keep=3)
    joined(state, other)
    begun = contents(other)
    moved(other, 0.25)
    assert state.rewind(tmp_path), "to a checkpoint without it"
    assert same(contents(other), begun) and (other.step, other.optimizer.num_steps) == (1, 0)
    moved(state, 0.5)
    moved(other, 0.25)
    state.save(tmp_path, keep=3)
    expected = contents(other)
    moved(other, 0.125)
    assert state.rewind(tmp_path)
    assert same(contents(other), expected) and (other.step, other.optimizer.num_steps) == (2, 1)
