"""A build that is killed at any change of a file goes on with the same command, and ends as one never killed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kills import contents, recipe, write_sources

from leyden.core.lock import LOCK
from leyden.data.builds import run_build

_CHANGES = ("replace", "rename", "unlink", "rmdir")
_KILLS = 4


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.slow
def test_killed_at_a_change_of_each_class(tmp_path: Path) -> None:
    """By the system, over all kinds of stages: at one class in nine, of a new build, then of a rebuild."""
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), str(tmp_path), "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("classes") == 2


def test_killed_at_some_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an exception, after which nothing can be changed any more: a rebuild of other settings, with few stages."""
    write_sources(tmp_path / "sources")
    other = recipe(tmp_path / "sources", [{"kind": "exact"}, {"kind": "hold_out"}])
    settings = recipe(tmp_path / "sources", [{"kind": "paragraphs", "min_left_characters": 1}])
    run_build(other, tmp_path / "older")
    place = tmp_path / "build"

    def killed_at(number: int) -> int:
        """How many changes were made or tried."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(tmp_path / "older", place)
        made = [0]
        with monkeypatch.context() as patch:
            for name in _CHANGES:
                patch.setattr(os, name, _dying(getattr(os, name), made, number))
            with suppress(Killed):
                run_build(settings, place)
        if made[0] > number:
            run_build(settings, place)
        return made[0]

    count = killed_at(sys.maxsize)
    whole = contents(place)
    for number in range(1, count, count // _KILLS):
        killed_at(number)
        again = contents(place)
        others = sorted(name for name in whole.keys() | again.keys() if whole.get(name) != again.get(name))
        assert not others, f"killed at change {number} of {count}: {others}"


def _dying(change: Callable[..., Any], made: list[int], number: int) -> Callable[..., Any]:
    def dying(*arguments: Any, **settings: Any) -> Any:
        if Path(arguments[0]).name != LOCK:  # the system gives the lock of a process back when it ends
            made[0] += 1
            if made[0] > number:
                raise Killed
        return change(*arguments, **settings)

    return dying
