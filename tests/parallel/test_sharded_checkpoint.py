"""A checkpoint saved under any plan loads under any other, bit for bit; whole on all ranks, or not there on any."""

import errno
import json
import os
import random
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo_ranks import mesh_of

from leyden.checkpoint import piece_index, pieces
from leyden.checkpoint.coordinator import coordinator_of
from leyden.checkpoint.tensor_stream import TensorStream
from leyden.checkpoint.training import Values, latest_training, save_training
from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig
from leyden.parallel import ParallelConfig, Plan, RankGroup, attach
from leyden.train import MasterAdamW, Pretrain, TrainState, train_step

CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=18,
    num_hidden_layers=4,
    layer_types=("linear_attention", "full_attention") * 2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    rotary_dim=2,
    intermediate_size=12,
    num_local_experts=4,
    shared_intermediate_size=8,
)
WEIGHTS = {name: tuple(p.shape) for name, p in HybridLM(CONFIG).named_parameters()}
KINDS = ("master", "exp_avg", "exp_avg_sq")
NAMES = {f"{kind}.{name}" for name in WEIGHTS for kind in KINDS}

FOUR = [
    Plan(dp_shard=4),
    Plan(cp=2, dp_shard=2, ep=2),
    Plan(dp_shard=4, ep=2, etp=2),
    Plan(tp=2, dp_shard=2),
    Plan(dp_replicate=2, dp_shard=2, ep=2),
    Plan(pp=2, tp=2, settings=ParallelConfig(pipeline_schedule="interleaved", stages_per_rank=2)),
]
TWO = [Plan(tp=2), Plan(dp_shard=2, etp=2), Plan(dp_replicate=2)]

EIGHT = [
    Plan(dp_shard=2, cp=2, tp=2, ep=2, etp=2),
    Plan(pp=2, dp_replicate=2, tp=2, ep=2),
    Plan(dp_shard=8, ep=4),
]


def known(name: str, seed: int = 0) -> torch.Tensor:
    """The whole tensor ``master.x``, ``exp_avg.x`` or ``exp_avg_sq.x``: random float32."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    return torch.randn(WEIGHTS[name.partition(".")[2]], generator=generator)


def state_of(
    plan: Plan | None,
    dtype: torch.dtype = torch.float32,
    config: ModelConfig = CONFIG,
    *,
    async_checkpoint: bool = False,
) -> TrainState:
    """A state whose tensors are all zero; on one process without a plan."""
    model = HybridLM(config)
    if plan is None:
        model = model.to(dtype)
        state = TrainState(model, MasterAdamW(model))
    else:
        mesh = mesh_of(plan)
        attached = attach(model, mesh, torch.bfloat16, row_tokens=64)
        optimizer = MasterAdamW(attached.weights)
        state = TrainState(attached.model, optimizer, RankGroup(mesh), async_checkpoint=async_checkpoint)
    for tensor in state._tensors().values():
        tensor.zero_()
    return state


def fill(state: TrainState, seed: int = 0) -> None:
    for name, piece in state._pieces().items():
        piece.tensor.copy_(piece.part.cut(known(name, seed)))
    state.step, state.tokens, state.optimizer.num_steps = 7, 1000 + seed, 6


def wrong(state: TrainState, seed: int = 0) -> list[str]:
    """What is not as :func:`fill` left it."""
    pieces = state._pieces().items()
    tensors = [name for name, p in pieces if not torch.equal(p.tensor, p.part.cut(known(name, seed)))]
    counters = (state.step, state.tokens, state.optimizer.num_steps)
    return tensors if counters == (7, 1000 + seed, 6) else [*tensors, f"counters {counters}"]


def _save(plan: Plan, directory: Path, seed: int) -> set[str]:
    state = state_of(plan)
    fill(state, seed)
    state.save(directory, keep=1)
    return set(state._pieces())


def _load(plan: Plan, directories: dict[int, Path]) -> dict[int, list[str]]:
    problems = {}
    state = state_of(plan)
    for seed, directory in directories.items():
        found = state.resume(directory)
        problems[seed] = wrong(state, seed) if found else ["nothing there"]
    return problems


def _every_plan(plans: list[Plan], ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    world = plans[0].world
    alone = state_of(None)
    fill(alone, len(plans))
    alone.save(tmp_path / "alone", keep=1)
    directories = {len(plans): tmp_path / "alone"}
    for seed, plan in enumerate(plans):
        directories[seed] = tmp_path / str(seed)
        assert set().union(*ranks(world, _save, plan, directories[seed], seed)) == NAMES
    for directory in directories.values():
        path = latest_training(directory)
        assert path is not None
        stored = piece_index.read_index(path)
        assert stored.keys() == NAMES
        for name, item in stored.items():
            sizes = [torch.Size(piece.sizes).numel() for piece in item.pieces]
            assert sum(sizes) == known(name).numel(), name
    for plan in plans:
        for problems in ranks(world, _load, plan, directories):
            assert problems == {seed: [] for seed in directories}, plan
    for dtype in (torch.float32, torch.bfloat16):
        state = state_of(None, dtype)
        for seed, directory in directories.items():
            assert state.resume(directory)
            assert wrong(state, seed) == []
            for name, parameter in state.model.named_parameters():
                assert torch.equal(parameter, known(f"master.{name}", seed).to(parameter.dtype)), name


def test_two_ranks_any_plan_to_any_other(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    _every_plan(TWO, ranks, tmp_path)


@pytest.mark.slow
def test_four_ranks_any_plan_to_any_other(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    _every_plan(FOUR, ranks, tmp_path)


@pytest.mark.slow
def test_eight_ranks_any_plan_to_any_other(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    _every_plan(EIGHT, ranks, tmp_path)


def _lose_experts(plan: Plan, directory: Path) -> None:
    """Save with rank 1's experts forgotten, as others do whose checkpoints end up with one rank's experts."""
    state = state_of(plan)
    pieces = state._pieces()
    if torch.distributed.get_rank() == 1:
        pieces = {name: piece for name, piece in pieces.items() if ".experts." not in name}
    with pytest.raises(ValueError, match=r"experts\.\w+ invalid fill tensor-volume"):
        save_training(directory, 8, pieces, Values({}), keep=1, coordinator=coordinator_of(mesh_of(plan)))


def test_a_lost_expert_does_not_pass_for_a_smaller_tensor(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    ranks(2, _save, Plan(dp_shard=2, ep=2), tmp_path, 0)
    ranks(2, _lose_experts, Plan(dp_shard=2, ep=2), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000007"]


def test_copies_share_the_writing(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    ranks(2, _save, Plan(dp_replicate=2), tmp_path, 0)
    one, other = (file.stat().st_size for file in tmp_path.glob("checkpoints/*/*.safetensors"))
    assert 0.8 < one / other < 1.25


def _spoilt(plan: Plan, directory: Path, async_checkpoint: bool) -> str:
    """Save while rank 1 has a full disk; the error, and that the checkpoint before is still there."""
    state = state_of(plan, async_checkpoint=async_checkpoint)
    plain = TensorStream.append

    def full(stream: TensorStream, tensor: torch.Tensor) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if torch.distributed.get_rank() == 1:
        TensorStream.append = full  # type: ignore[method-assign]
    try:
        with pytest.raises(UserError) as caught:
            state.step = 8
            state.save(directory, keep=1)
            if async_checkpoint:
                while True:
                    state.check_saving()
    finally:
        TensorStream.append = plain  # type: ignore[method-assign]
    assert state.resume(directory)
    assert wrong(state) == []
    return str(caught.value)


@pytest.mark.parametrize("async_checkpoint", [False, True])
def test_a_full_disk_on_one_rank(ranks: Callable[..., list[Any]], tmp_path: Path, async_checkpoint: bool) -> None:
    ranks(2, _save, Plan(tp=2), tmp_path, 0)
    for message in ranks(2, _spoilt, Plan(tp=2), tmp_path, async_checkpoint):
        assert "step_00000008 could not be written: the disk is full" in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000007"]


def _other_model(plan: Plan, directory: Path) -> str:
    state = state_of(plan, config=CONFIG.model_copy(update={"intermediate_size": 16, "shared_intermediate_size": 0}))
    with pytest.raises(UserError) as caught:
        state.resume(directory)
    assert not any(tensor.any() for tensor in state._tensors().values())
    return str(caught.value)


def test_another_model_is_refused_alike_on_all_ranks(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    """Rank 1 has the last layer alone; all the same both say everything that is wrong."""
    alone = state_of(None)
    fill(alone)
    alone.save(tmp_path, keep=1)
    one, other = ranks(2, _other_model, Plan(pp=2), tmp_path)
    assert one == other
    assert "exp_avg.layers.0.mlp.shared.coefficient.weight is unknown to this run" in one
    assert "more. Resume with the recipe that wrote it" in one


def _random(plan: Plan, directory: Path, seeds: list[int]) -> list[float]:
    """What a rank draws after a save, and again after it has resumed."""
    state = state_of(plan)
    _seed(seeds[torch.distributed.get_rank()])
    state.save(directory, keep=1)
    drawn = [float(torch.rand(())), random.random(), float(np.random.rand())]
    _seed(99)
    assert state.resume(directory)
    return [*drawn, float(torch.rand(())), random.random(), float(np.random.rand())]


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@pytest.mark.parametrize("seeds", [[5, 5], [5, 6]])
def test_every_rank_has_its_random_numbers_back(
    ranks: Callable[..., list[Any]], tmp_path: Path, seeds: list[int]
) -> None:
    found = ranks(2, _random, Plan(tp=2), tmp_path, seeds)
    for drawn in found:
        assert drawn[:3] == drawn[3:]
    path = latest_training(tmp_path)
    assert path is not None
    assert len(json.loads((path / "values.json").read_text())["ranks"]) == len(set(seeds))


def _die(plan: Plan, directory: Path) -> None:
    state = state_of(plan)
    state.step = 8
    if torch.distributed.get_rank() == 1:
        TensorStream.append = lambda *_: os._exit(9)  # type: ignore[method-assign, assignment]
    state.save(directory, keep=1)


def test_a_rank_that_dies_leaves_the_checkpoint_before(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    ranks(2, _save, Plan(tp=2), tmp_path, 0)
    with pytest.raises(AssertionError, match="rank"):
        ranks(2, _die, Plan(tp=2), tmp_path)
    assert latest_training(tmp_path) == tmp_path / "checkpoints" / "step_00000007"
    for problems in ranks(2, _load, Plan(dp_shard=2), {0: tmp_path}):
        assert problems == {0: []}


@dataclass(frozen=True)
class Row:
    """A packed batch."""

    tokens: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor


def _train_on(plan: Plan, directory: Path) -> tuple[bool, list[str]]:
    """Train while a save is pending, which begins at another step on each rank; what is not as at the save's moment."""
    mesh = mesh_of(plan)
    attached = attach(HybridLM(CONFIG), mesh, torch.float32)
    state = TrainState(attached.model, MasterAdamW(attached.weights), RankGroup(mesh), async_checkpoint=True)
    generator = torch.Generator().manual_seed(mesh.dp_rank)

    def step() -> None:
        tokens = torch.randint(0, CONFIG.vocab_size, (1, 25), generator=generator)
        row = Row(tokens[:, :-1], tokens[:, 1:], torch.tensor([0, 11, 24], dtype=torch.int32))
        train_step(state, [row], Pretrain(), lr=1e-2, clip_norm=1.0)
        state.check_saving()

    go, plain = threading.Event(), pieces.save_pieces

    def held(*arguments: Any) -> list[Path]:
        assert go.wait(60)
        return plain(*arguments)

    pieces.save_pieces = held
    try:
        step()
        then = {name: tensor.clone() for name, tensor in state._tensors().items()}
        state.save(directory, keep=1)
        for index in range(4):
            step()
            if index == mesh.rank:
                go.set()
        changed = all(not torch.equal(tensor, then[name]) for name, tensor in state._tensors().items())
        state.finish_saving()
    finally:
        pieces.save_pieces = plain
    resumed = state_of(plan)
    assert resumed.resume(directory)
    return changed, [name for name, tensor in resumed._tensors().items() if not torch.equal(tensor, then[name])]


@pytest.mark.parametrize(
    "plan", [Plan(dp_shard=2, ep=2), pytest.param(Plan(cp=2, etp=2), marks=pytest.mark.slow)], ids=str
)
def test_ranks_train_on_while_a_save_is_pending(ranks: Callable[..., list[Any]], tmp_path: Path, plan: Plan) -> None:
    assert ranks(2, _train_on, plan, tmp_path) == [(True, [])] * 2
