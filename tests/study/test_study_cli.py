"""``leyden study data``: what its verbs print and write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_power_from_figures_alone(leyden_cli: Callable[..., Any]) -> None:
    outcome = leyden_cli("study", "data", "power", "--sd", 1, "--effect", 0.5, "--items", 27)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "one-sided, 95% confidence, 80% power"
    assert "an effect of 0.5 needs 27 items" in lines[1]
    assert "27 items find an effect of 0.49" in lines[2]
    seeds = leyden_cli("study", "data", "power", "--sd", 0.3, "--run-sd", 0.05, "--items", 400, "--effect", 0.1)
    assert "seeds of each variant" in seeds.out
    refused = leyden_cli("study", "data", "power", "--sd", 1)
    assert (refused.code, "give --effect" in refused.err) == (2, True)


def test_a_study_that_is_not_there(leyden_cli: Callable[..., Any], tmp_path: Path) -> None:
    for verb in ("run", "verdict", "null"):
        outcome = leyden_cli("study", "data", verb, tmp_path)
        assert (outcome.code, "holds no study" in outcome.err) == (2, True)
    outcome = leyden_cli("study", "data", "plan", tmp_path / "none.toml", "--dir", tmp_path / "study")
    assert (outcome.code, "does not exist" in outcome.err) == (2, True)


@pytest.mark.slow  # half a minute: the standard library is read, and 12 models are trained
def test_the_quick_demonstration(leyden_cli: Callable[..., Any], tmp_path: Path) -> None:
    outcome = leyden_cli("study", "data", "demo", "--quick", "--dir", tmp_path)
    assert outcome.code == 0, outcome.err
    assert "H1: " in outcome.out
    assert "ccepted" in outcome.out
    assert "false positives" in outcome.out
    for name in ("plan", "verdict", "null"):
        assert json.loads((tmp_path / f"{name}.json").read_text())
    for name in ("verdict", "null"):
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
    again = leyden_cli("study", "data", "verdict", tmp_path)
    assert again.out in outcome.out
