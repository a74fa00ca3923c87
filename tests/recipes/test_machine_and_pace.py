"""What a run says of the machine: that it is another one now, and that steps take longer than was measured."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from leyden.parallel import RankGroup
from leyden.recipes import machine, pace
from leyden.recipes.machine import note_machine
from leyden.recipes.pace import Pace
from leyden.train import BatchSchedule


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for module in (machine, pace):
        monkeypatch.setattr(module, "say", lines.append)
    return lines


def test_another_machine_is_said_once(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "environment.json"
    note_machine(tmp_path, "float32", RankGroup())
    now = json.loads(path.read_text())
    assert now["ranks"] == 1
    assert now["backend"] in ("native", "torch", "triton")
    path.write_text(json.dumps(now | {"threads": 77, "torch": "0.4", "date": "long ago"}))
    note_machine(tmp_path, "float32", RankGroup())
    assert said == []  # it has no checkpoint, and begins anew
    path.write_text(json.dumps(now | {"threads": 77, "torch": "0.4", "date": "long ago"}))
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    for _ in range(2):
        note_machine(tmp_path, "float32", RankGroup())
    (line,) = said
    assert f"threads 77 -> {now['threads']}; torch 0.4 -> {now['torch']}" in line
    assert "the bits of the steps from here on may differ" in line


@pytest.mark.parametrize(("policy", "advised"), [("", True), ("passive", False)])
def test_steps_of_twice_the_time_are_said_once(
    said: list[str], monkeypatch: pytest.MonkeyPatch, policy: str, advised: bool
) -> None:
    """Planned: 120 steps in a minute, half a second each; one slow step in ten is none of it."""
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    seconds = itertools.chain([0.6] * 10, [9.0], [0.6] * 10, itertools.repeat(1.1))
    clock = itertools.accumulate(seconds)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=clock.__next__))
    watch = Pace("one", 1.0, 120, BatchSchedule.of(64, 64), "To go on: leyden run x")
    for step in range(1, 100):
        watch(cast("Any", SimpleNamespace(stage_step=step)), cast("Any", SimpleNamespace(tokens=64)))
        if step == 21:
            assert said == []
    (line,) = said
    assert line.startswith("stage 'one': a step takes 1.10 s, and 0.50 s were planned: the rest will take about 2 min")
    assert ("OMP_WAIT_POLICY=PASSIVE" in line and "leyden run x" in line) == advised
