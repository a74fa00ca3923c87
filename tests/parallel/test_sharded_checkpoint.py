"""A checkpoint saved under any plan loads under any other, bit for bit; whole on all ranks, or not there on any."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gloo_ranks import mesh_of

from leyden.checkpoint import piece_files
from leyden.checkpoint.training import latest_training
from leyden.model import HybridLM, ModelConfig
from leyden.parallel import Plan, Team, attach
from leyden.train import MasterAdamW, TrainState

CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    layer_types=("linear_attention", "full_attention"),
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
    Plan(pp=2, tp=2),
]
TWO = [Plan(tp=2), Plan(dp_shard=2, etp=2), Plan(dp_replicate=2)]


def known(name: str, seed: int = 0) -> torch.Tensor:
    """The whole tensor ``master.x``, ``exp_avg.x`` or ``exp_avg_sq.x``: random float32."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    return torch.randn(WEIGHTS[name.partition(".")[2]], generator=generator)


def state_of(plan: Plan | None, dtype: torch.dtype = torch.float32) -> TrainState:
    """A state whose tensors are all zero; on one process without a plan."""
    model = HybridLM(CONFIG)
    if plan is None:
        model = model.to(dtype)
        state = TrainState(model, MasterAdamW(model))
    else:
        mesh = mesh_of(plan)
        attached = attach(model, mesh, torch.bfloat16, row_tokens=64)
        state = TrainState(attached.model, MasterAdamW(attached.weights), Team(mesh))
    for tensor in state._tensors().values():
        tensor.zero_()
    return state


def fill(state: TrainState, seed: int = 0) -> None:
    for name, piece in state._pieces().items():
        piece.tensor.copy_(piece.part.cut(known(name, seed)))
    state.step, state.tokens, state.optimizer.num_steps = 7, 1000 + seed, 6


def wrong(state: TrainState, seed: int = 0) -> list[str]:
    """What is not as :func:`fill` left it."""
    tensors = [
        n for n, piece in state._pieces().items() if not torch.equal(piece.tensor, piece.part.cut(known(n, seed)))
    ]
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
        stored = piece_files.read_index(path)
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


def test_four_ranks_any_plan_to_any_other(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    _every_plan(FOUR, ranks, tmp_path)
