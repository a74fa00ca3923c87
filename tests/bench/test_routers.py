"""The table of drop rates, in its quick form."""

import json
from pathlib import Path

import pytest

from leyden.bench.parallel.routers import run_routers


@pytest.mark.slow
def test_every_row_is_measured_and_held_to_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "routers.json"
    result = run_routers(quick=True, output=path)
    rows = {row.work: row for row in result.rows}
    for factor in ("1.0", "1.25", "1.5"):
        skewed = rows[f"capacity {factor}, ranks skewed each its own way"]
        assert skewed.theirs is not None
        assert skewed.theirs > skewed.ours > 0
        first, last = (rows[f"capacity {factor}, by {by}"].ours for by in ("probability", "position"))
        assert first < last, "the most probable of as many assignments weigh more"
        alike = rows[f"capacity {factor}, ranks skewed alike"]
        assert alike.theirs is not None
        assert alike.theirs / alike.ours < skewed.theirs / skewed.ours, "there is less to share"
    assert result.checks["assignments_kept_as_by_one_process"] == 3 * 3 * 2 * 2 * 256
    assert json.loads(path.read_text())["rows"][0]["theirs"] == result.rows[0].theirs
    assert "leyden bench routers" in capsys.readouterr().out
