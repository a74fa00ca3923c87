"""The quick form of ``leyden bench eval`` runs whole, and what it asks for is what it says."""

import json
from pathlib import Path

import pytest

from leyden.core.errors import UserError

pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install 'leyden[lm-eval]'")


@pytest.mark.slow
def test_quick_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    from leyden.bench.evaluate.run import run_eval

    result = run_eval(quick=True, output=tmp_path / "eval.json")
    choice, needles = result.rows
    assert choice.work == "16 questions of 4 answers, f32" and needles.work == "6 needles, 3 depths of 256, 512, f32"
    assert all(row.ours > 0 and row.theirs for row in result.rows)
    assert result.checks["largest_logprob_difference"] < 1e-3
    assert len(json.loads((tmp_path / "eval.json").read_text())["rows"]) == 2
    assert "these figures mean nothing" in capsys.readouterr().out


def test_questions_share_their_context_among_four_answers() -> None:
    from leyden.bench.evaluate.plan import questions
    from leyden.bench.evaluate.requests import likelihoods

    pairs = questions(["def f(x):\n    return x\n" * 90], 6)
    assert len(pairs) == 24 and len({context for context, _ in pairs}) <= 6
    assert all(context.startswith("Question: ") and answer.startswith(" ") for context, answer in pairs)
    assert questions(["def f(x):\n    return x\n" * 90], 6) == pairs
    assert [one.args for one in likelihoods(pairs)] == pairs


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from leyden.bench.evaluate.run import run_eval

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install transformers"):
        run_eval(quick=True)
