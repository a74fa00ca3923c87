"""The paper's pre-training as a recipe: its numbers, its table, and its small twin, which runs."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leyden.recipes import load_recipe


def test_it_says_what_the_paper_says() -> None:
    first, *long = load_recipe("text-01").stage
    steps = first.total_steps
    assert steps is not None
    at = {1: 4e-7, 500: 2e-4, 5000: 2e-4, steps: 3e-5}
    assert {step: first.lr_at(step - 1, steps) for step in at} == pytest.approx(at)
    assert first.lr_at(first.batch_schedule.steps_for(int(7.3e12)), steps) == 1.3e-4
    decay = first.batch_schedule.steps_for(int(10.4e12))
    assert first.lr_at(decay - 2, steps) == 1.3e-4 > first.lr_at(decay + 2, steps)
    assert [
        first.batch_schedule.tokens_at(first.batch_schedule.steps_for(int(t))) // 2**20
        for t in (1e9, 70e9, 800e9, 5e12)
    ] == [*(16, 32, 64, 128)]
    assert [(stage.seq_len, stage.rope_theta, stage.tokens) for stage in long] == [
        (131_072, 5e6, 300 * 10**9),
        (524_288, 1e7, 32 * 10**9),
        (1_048_576, 1e7, 26 * 10**9),
    ]
    assert [stage.mixture.point[0].lengths for stage in long if stage.mixture] == [
        (0.3, 0.7, 0.0),
        (0.35, 0.35, 0.3),
        (0.3, 0.3, 0.4),
    ]


def test_its_twin_has_the_same_stages() -> None:
    whole, tiny = load_recipe("text-01"), load_recipe("text-01-tiny")
    assert [stage.name for stage in whole.stage] == [stage.name for stage in tiny.stage]
    for ours, theirs in zip(whole.stage, tiny.stage, strict=True):
        assert ours.seq_len == 128 * theirs.seq_len
        assert ours.rope_theta == theirs.rope_theta
        assert [size for _, size in ours.batch_schedule.marks] == [
            2**13 * size for _, size in theirs.batch_schedule.marks
        ]
        mine, other = ours.mixture, theirs.mixture
        assert mine is not None and other is not None
        assert (mine.point, mine.late, mine.transition) == (other.point, other.late, other.transition)
        assert mine.length_bounds == tuple(128 * bound for bound in other.length_bounds)


def test_the_table_is_printed_without_data(tmp_path: Path, leyden_cli: Callable[..., Any]) -> None:
    outcome = leyden_cli("run", "text-01", "--dry-run", "--dir", tmp_path / "run")
    assert (outcome.code, outcome.err) == (0, "")
    table = [line for line in outcome.out.splitlines() if line.startswith("#")]
    text = "\n".join(table)
    assert "data/text-01 is not there yet" in text
    for part in ("11.4T", "33.55M from 69B", "0.00013 from 7.2T", "exponential to 3e-05 in the last 1T"):
        assert part in text
    for name, base in (("128k", "5,000,000"), ("512k", "10,000,000"), ("1m", "10,000,000")):
        (line,) = (line for line in table if line.split()[1:2] == [name])
        assert base in line
    assert "30% to 32,768, 30% to 131,072, 40% longer" in text
    assert "10% long-qa in the last 20%" in text
    assert tomllib.loads(outcome.out)["stage"][0]["tokens"] == 11_400_000_000_000


@pytest.mark.slow
def test_its_twin_runs(tmp_path: Path, leyden_cli: Callable[..., Any]) -> None:
    outcome = leyden_cli("run", "text-01-tiny", "--dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [*dict.fromkeys(line["stage"] for line in lines)] == ["8k", "128k", "512k", "1m"]
    assert lines[-1]["loss"] < lines[0]["loss"] - 2
    assert "long-qa, longer than 1,024 tokens: " in outcome.err
