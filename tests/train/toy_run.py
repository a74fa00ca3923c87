"""A run small enough to be killed often: two stages of a tiny model on sequences that count up by three.

As a program, ``python toy_run.py DIR [--die-at-step N] [--die-in-save N]`` runs or resumes it and kills itself with
SIGKILL as told.
"""

import argparse
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from leyden.checkpoint import training
from leyden.model import HybridLM, ModelConfig
from leyden.train import Callback, FitSettings, LearningRate, MasterAdamW, Objective, Pretrain, TrainState, fit

STAGE_STEPS = (6, 5)
CHECKPOINT_STEPS = 4


@dataclass(frozen=True)
class Batch:
    tokens: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor


def counting_batch(starts: list[int], length: int, generator: torch.Generator | None = None) -> Batch:
    """One document a start; some labels are hidden where a generator says so."""
    rows = [(start + 3 * torch.arange(length + 1)) % 32 for start in starts]
    tokens = torch.cat([row[:-1] for row in rows])[None]
    labels = torch.cat([row[1:] for row in rows])[None]
    if generator is not None:
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = -100
    return Batch(tokens, labels, torch.arange(0, len(starts) * length + 1, length, dtype=torch.int32))


class CountingBatches:
    """Draws from every global generator, so that a resumed run differs unless all of them are restored."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.served = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self.served += 1
        starts = [self.served, random.randrange(32), int(np.random.randint(32)), int(torch.randint(32, ()))]
        return counting_batch(starts, self.length)

    def state_dict(self) -> dict[str, Any]:
        return {"served": self.served}

    def load_state_dict(self, state: dict[str, Any]) -> Self:
        self.served = state["served"]
        return self


def tiny_model(dtype: torch.dtype = torch.float32, **changes: Any) -> HybridLM:
    shape: dict[str, Any] = {
        "vocab_size": 32,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "layer_types": ("linear_attention", "full_attention"),
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rotary_dim": 8,
        "intermediate_size": 24,
        "num_local_experts": 4,
        "z_loss_coef": 1e-4,
    }
    return HybridLM(ModelConfig(**(shape | changes)), seed=1).to(dtype)


def settings(*, micro_batches: int = 2, **changes: Any) -> FitSettings:
    plain: dict[str, Any] = {
        "stage": "toy",
        "total_steps": 6,
        "micro_batches": lambda step: micro_batches,
        "checkpoint_steps": CHECKPOINT_STEPS,
        "flops_per_token": 1e5,
        "peak_flops_per_second": 1e9,
        "how_to_resume": "Run it again to go on.",
    }
    return FitSettings(**(plain | changes))


def seed_all(seed: int) -> None:
    """Every generator that batches draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def run(
    run_dir: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    objective: Objective | None = None,
    callbacks: tuple[Callback, ...] = (),
    async_checkpoint: bool = False,
    **shape: Any,
) -> TrainState:
    """Run, or resume, to the end; of a model with these changes of its shape."""
    seed_all(3)
    model = tiny_model(dtype, **shape)
    state = TrainState(model, MasterAdamW(model), async_checkpoint=async_checkpoint)
    state.resume(run_dir)
    for stage in range(state.stage, len(STAGE_STEPS)):
        fit(
            state,
            CountingBatches(length=9 + 4 * stage),
            objective or Pretrain(),
            LearningRate(lr=3e-3, warmup_steps=2),
            settings(stage=f"stage {stage}", total_steps=STAGE_STEPS[stage]),
            run_dir=run_dir,
            stage=stage,
            callbacks=callbacks,
        )
    return state


def _kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--die-at-step", type=int)
    parser.add_argument("--die-in-save", type=int)
    arguments = parser.parse_args()

    def at_step(state: TrainState, _: object) -> None:
        if state.step == arguments.die_at_step:
            _kill_myself()

    plain = training._fingerprint

    def in_save(file: Path) -> Any:
        if f"step_{arguments.die_in_save or 0:08d}" in str(file):
            _kill_myself()
        return plain(file)

    training._fingerprint = in_save
    run(arguments.run_dir, callbacks=(at_step,))


if __name__ == "__main__":
    main()
