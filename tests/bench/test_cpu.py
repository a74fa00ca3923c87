"""The quick form of ``leyden bench cpu`` runs whole; differing logits stop it."""

import json

import numpy as np
import pytest

from leyden.bench import run_cpu
from leyden.bench.cpu import run as cpu
from leyden.bench.work import compare_logits
from leyden.core.errors import UserError

pytest.importorskip("transformers")


@pytest.mark.slow
def test_quick_form_measures_every_row(tmp_path, capsys):
    result = run_cpu(quick=True, output=tmp_path / "cpu.json")
    assert [row.work.split()[0] for row in result.rows] == [
        *["training"] * 4,
        *["prefill"] * 2,
        *["decode"] * len({"float32", result.settings["dtype"]}),
        "attention",
        "op",
        "training",
    ]
    assert all(row.ours > 0 for row in result.rows)
    assert result.checks["largest_logit_difference"] < 1e-4
    assert len(json.loads((tmp_path / "cpu.json").read_text())["rows"]) == len(result.rows)
    assert "these figures mean nothing" in capsys.readouterr().out


def test_differing_logits_are_refused():
    def side(value: float) -> np.ndarray:
        return np.full((600, 3), value)

    same = compare_logits(side(2.0), side(2.0 + 1e-5))
    assert same["largest_logit_difference"] == pytest.approx(5e-6)
    for wrong in (2.001, float("nan")):
        with pytest.raises(RuntimeError, match="must compute the same"):
            compare_logits(side(2.0), side(wrong))


def test_without_transformers_the_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        run_cpu(quick=True)
