"""One optimizer step of a plan's ranks, measured: bytes handed to collectives, and live tensor bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gloo_ranks import mesh_of
from live_memory import track_memory
from one_process import FOUR_LAYERS, Row, random_row, small_config

from leyden.model import HybridLM
from leyden.parallel import Plan, RankGroup, attach
from leyden.parallel.mesh import coordinates
from leyden.parallel.planner import StepShape
from leyden.parallel.planner.memory import RankMemory, predict_memory
from leyden.parallel.planner.rank import Rank
from leyden.parallel.planner.traffic import predict_traffic
from leyden.parallel.traffic import count_traffic
from leyden.train import MasterAdamW, Pretrain, TrainState, train_step


@dataclass(frozen=True)
class Measured:
    """Live bytes of one rank.

    Attributes:
        held, peak: before the step, and the most during it.
        memory: what was predicted of them.
        is_routed: whether tokens go to experts of other ranks.
    """

    held: int
    peak: int
    memory: RankMemory
    is_routed: bool


Bytes = dict[tuple[str, str], int]
"""By (axis, operation)."""


def measure_memory(
    plan: Plan, changes: dict[str, Any], step: StepShape, lengths: list[int], dtype: torch.dtype
) -> Measured:
    """The second of two steps, on rows of documents of these ``lengths``: the first one makes what stays."""
    with track_memory() as memory:
        state, rank, batches = _prepare(plan, changes, step, lengths, dtype)
        memory.follow([*state.model.parameters(), *state.model.buffers()])
        train_step(state, batches, Pretrain(), lr=1e-3, clip_norm=1.0, mtp_weight=0.3)
        held = memory.current
        memory.reset_peak()
        train_step(state, batches, Pretrain(), lr=1e-3, clip_norm=1.0, mtp_weight=0.3)
    is_routed = any(axis in ("ep", "etp") for axis, _ in predict_traffic(rank))
    return Measured(held, memory.peak, predict_memory(rank), is_routed)


def measure_traffic(
    plan: Plan, changes: dict[str, Any], step: StepShape, lengths: list[int], dtype: torch.dtype
) -> tuple[Bytes, Bytes]:
    """The bytes that a step hands to collectives, and what was predicted of them."""
    state, rank, batches = _prepare(plan, changes, step, lengths, dtype)
    if plan.pp > 1:  # the first step also says how long its rows are
        train_step(state, batches, Pretrain(), lr=1e-3, clip_norm=1.0, mtp_weight=0.3)
    with count_traffic(mesh_of(plan)) as traffic:
        train_step(state, batches, Pretrain(), lr=1e-3, clip_norm=1.0, mtp_weight=0.3)
    return traffic.by_operation(), dict(predict_traffic(rank))


def _prepare(
    plan: Plan, changes: dict[str, Any], step: StepShape, lengths: list[int], dtype: torch.dtype
) -> tuple[TrainState, Rank, list[Row]]:
    """A training, what the planner knows of this rank, and the micro-batches of a step."""
    model, mesh = small_config(**{**FOUR_LAYERS, **changes}), mesh_of(plan)
    attached = attach(HybridLM(model), mesh, dtype, row_tokens=step.seq_len)
    attached.model.train()
    state = TrainState(attached.model, MasterAdamW(attached.weights), RankGroup(mesh))
    batches = [
        random_row(lengths, model.vocab_size, seed=mesh.dp_rank * 100 + n) for n in range(step.num_micro_batches)
    ]
    bounds = tuple(torch.tensor([0, *lengths]).cumsum(0).tolist())
    return state, Rank(model, plan, step, coordinates(plan, mesh.rank), dtype, bounds), batches
