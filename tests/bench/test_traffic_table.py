"""The table of predicted and counted bytes, in its quick form."""

import json
from pathlib import Path

import pytest

from leyden.bench.parallel.traffic import run_traffic


@pytest.mark.slow
def test_predicted_bytes_are_those_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "traffic.json"
    rows = run_traffic(quick=True, output=path)
    assert all(row.predicted == row.counted > 0 for row in rows)
    lasp, ring = ([row.counted for row in rows if row.layer == name] for name in ("LASP+", "ring attention"))
    assert lasp[0] == lasp[1] == 2 * 4 * 32 * 32 * 4  # two states of 4 heads in float32, whatever the length
    assert ring[1] == 8 * ring[0]
    assert len(json.loads(path.read_text())["rows"]) == 4
    assert "ring attention" in capsys.readouterr().out
