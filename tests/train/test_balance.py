"""Biases of routers in training: an uneven load becomes even, and stays uneven where they stay."""

from pathlib import Path

import torch
import toy_run

from leyden.train import LearningRate, MasterAdamW, Pretrain, TrainState, read_metrics
from leyden.train.loop import fit


def _violations(run_dir: Path, rate: float, share: float = 1.0) -> list[float]:
    """Of every step of a model whose first expert is much favoured at the beginning."""
    toy_run.seed_all(0)
    model = toy_run.tiny_model(router="sigmoid_groups", n_group=2, topk_group=2, num_local_experts=8)
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.gate.expert_bias[0] = 0.4
    state = TrainState(model, MasterAdamW(model))
    learning_rate = LearningRate(lr=1e-3, expert_bias_rate=rate, expert_bias_share=share)
    settings = toy_run.settings(total_steps=40, micro_batches=1)
    fit(state, toy_run.CountingBatches(64), Pretrain(), learning_rate, settings, run_dir=run_dir)
    return [line["max_violation"] for line in read_metrics(run_dir / "metrics.jsonl")]


def test_an_uneven_load_becomes_even(tmp_path: Path) -> None:
    moved, left = _violations(tmp_path / "moved", 0.02), _violations(tmp_path / "left", 0.0)
    stopped = _violations(tmp_path / "stopped", 0.02, share=0.25)
    assert moved[0] == left[0] > 2
    assert sum(moved[-10:]) < 0.5 * sum(left[-10:])
    assert stopped[:11] == moved[:11] and stopped != moved
