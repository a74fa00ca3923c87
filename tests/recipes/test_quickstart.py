"""``leyden quickstart``: two models in the minutes of one."""

import sys
from pathlib import Path
from typing import Any

import pytest

from leyden.recipes import quickstart
from leyden.recipes.schema import Recipe


def test_the_minutes_are_divided_between_the_two_models(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    ran = list[tuple[Recipe, Path]]()

    def run(recipe: Recipe, directory: Path) -> Path:
        ran.append((recipe, directory))
        return directory / "final"

    monkeypatch.setattr(sys.modules[quickstart.__module__], "run", run)
    assert quickstart(directory=Path("here"), minutes=2.0) == Path("here/final")
    (writes, first), (answers, second) = ran
    assert (first, second) == (Path("here"), Path("here/chat"))
    minutes = [stage.minutes for recipe in (writes, answers) for stage in recipe.stage]
    assert sum(one for one in minutes if one is not None) == pytest.approx(2.0) and None not in minutes
    assert answers.evaluate.environment == "leyden.align.tasks:QuickTasks"
    told = " ".join(capsys.readouterr().err.split())
    assert "does no sums" in told and "leyden chat here/chat/final" in told
