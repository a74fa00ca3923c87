"""Whatever a disk answers, wherever a run writes: one paragraph, exit code 2, and the same command goes on."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_runs import assert_same_run

PLACES = [
    ("leyden.recipes.prepare.write_checksums", errno.EROFS),
    ("leyden.train.metrics.MetricsLog.sync", errno.EIO),
    ("leyden.train.metrics.atomic_file", errno.ENOTDIR),
    ("leyden.checkpoint.pieces.save_pieces", errno.EACCES),
    ("leyden.recipes.runner.save_trained", errno.ESTALE),
    ("leyden.recipes.runner.evaluate_run", errno.EIO),
    ("leyden.recipes.runner.write_report", errno.EDQUOT),
]


@pytest.mark.parametrize(
    "places", [PLACES[1:2] + PLACES[-1:], pytest.param(PLACES, marks=pytest.mark.slow)], ids=["two", "all"]
)
def test_a_disk_that_fails_in_one_place_after_another(
    finished: Path,
    recipe_file: Path,
    tmp_path: Path,
    leyden_cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    places: list[tuple[str, int]],
) -> None:
    command = ("run", recipe_file, "--dir", tmp_path / "run")
    for place, number in places:

        def fail(*_: Any, number: int = number, **__: Any) -> None:
            raise OSError(number, os.strerror(number), str(tmp_path / "run" / "file"))

        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            outcome = leyden_cli(*command)
        assert outcome.code == 2, (place, outcome.err)
        last = outcome.err.splitlines()[-1]
        assert last.startswith(f"error: {tmp_path / 'run'}"), (place, last)
        assert "could not be written" in last
        assert "Traceback" not in outcome.err
    assert leyden_cli(*command).code == 0
    assert_same_run(tmp_path / "run", finished)
