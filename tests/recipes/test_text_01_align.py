"""The paper's post-training as a recipe (Table 7): its numbers, its table, and its small twin, which runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leyden.recipes import load_recipe


def test_it_says_what_the_paper_says() -> None:
    stages = load_recipe("text-01-align").stage
    assert [(s.objective, s.seq_len, s.epochs) for s in stages] == [
        ("sft", 8_192, 2),
        ("sft", 1_032_192, 2),
        ("preference", 2 * 8_192, 1),
        ("preference", 2 * 1_032_192, 1),
        ("rl", 8_192, 1),
    ]
    assert [s.batch_schedule.tokens_at(0) // s.seq_len for s in stages[:4]] == [128, 80, 64, 64]
    rl = stages[4].rollouts
    assert rl.prompts_per_step * rl.group_size == 512 and rl.algorithm.preset == "minimax"
    rates = [(s.lr_at(0, 100), s.lr_at(99, 100)) for s in stages]
    expected = [(1e-5, 1e-6), (3e-6, 3e-6), (5e-7, 5e-8), (5e-7, 5e-7), (1e-6, 1e-7)]
    for found, paper in zip(rates, expected, strict=True):
        assert found == pytest.approx(paper, rel=0.02)
    long = stages[1].mixture
    assert long is not None and long.point[0].lengths == (0.5, 0.5)
    assert stages[0].rope_theta == 1e7 and all(s.rope_theta is None for s in stages[1:])


def test_its_twin_has_the_same_stages() -> None:
    base, *tiny = load_recipe("align-tiny").stage
    whole = load_recipe("text-01-align").stage
    assert base.objective == "pretrain"
    assert [(s.name, s.objective, s.schedule) for s in tiny] == [(s.name, s.objective, s.schedule) for s in whole]


def test_the_table_is_printed_without_model_and_data(tmp_path: Path, leyden_cli: Callable[..., Any]) -> None:
    outcome = leyden_cli("run", "text-01-align", "--dry-run", "--dir", tmp_path / "run")
    assert (outcome.code, outcome.err) == (0, "")
    table = "\n".join(line for line in outcome.out.splitlines() if line.startswith("#"))
    for part in ("2 epochs", "1 epoch ", "1,032,192", "10,000,000", "64 prompts, 8 completions each", "50% longer"):
        assert part in table
    assert "runs/text-01 is not there yet, the model to begin from" in table
    refused = leyden_cli("run", "text-01-align", "--dir", tmp_path / "run", "--set", "parallel={}")
    assert refused.code == 2 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_its_twin_runs(tmp_path: Path, leyden_cli: Callable[..., Any]) -> None:
    outcome = leyden_cli("run", "align-tiny", "--dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    solved = {line["stage"]: line["components"] for line in lines if line["task"] == "held_out_reward"}
    assert [*solved] == ["base", "sft-short", "sft-long", "dpo-short", "dpo-long", "rl"]
    assert not any(solved["base"].values()), "it has seen no chat"
    assert solved["sft-short"]["last"] > 0.9 and solved["sft-short"]["keep"] < 0.5
    assert all(solved["rl"][task] > 0.6 for task in ("say", "turn", "last", "keep"))
