"""One optimizer step of a plan's ranks, measured: bytes handed to collectives, and live tensor bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gloo_ranks import mesh_of
from live_memory import track_memory
from one_process import FOUR_LAYERS, random_row, small_config

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
    """Of one rank.

    Attributes:
        counted, predicted: bytes by (axis, operation).
        held, peak: live bytes before the step, and the most during it.
        memory: what was predicted of them.
    """

    counted: dict[tuple[str, str], int]
    predicted: dict[tuple[str, str], int]
    held: int
    peak: int
    memory: RankMemory


def measure(plan: Plan, changes: dict[str, Any], step: StepShape, lengths: list[int], dtype: torch.dtype) -> Measured:
    """The second of two steps, on rows of documents of these ``lengths``: the first one makes what stays."""
    model, mesh = small_config(**{**FOUR_LAYERS, **changes}), mesh_of(plan)
    with track_memory() as memory:
        attached = attach(HybridLM(model), mesh, dtype, row_tokens=step.seq_len)
        attached.model.train()
        optimizer = MasterAdamW(attached.weights)
        memory.follow([*attached.model.parameters(), *attached.model.buffers()])
        state = TrainState(attached.model, optimizer, RankGroup(mesh))
        batches = [
            random_row(lengths, model.vocab_size, seed=mesh.dp_rank * 100 + n) for n in range(step.num_micro_batches)
        ]
        train_step(state, batches, Pretrain(), lr=1e-3, clip_norm=1.0)
        held = memory.current
        memory.reset_peak()
        with count_traffic(mesh) as traffic:
            train_step(state, batches, Pretrain(), lr=1e-3, clip_norm=1.0)
    bounds = tuple(torch.tensor([0, *lengths]).cumsum(0).tolist())
    rank = Rank(model, plan, step, coordinates(plan, mesh.rank), dtype, bounds)
    return Measured(traffic.by_operation(), dict(predict_traffic(rank)), held, memory.peak, predict_memory(rank))
