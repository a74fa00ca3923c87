"""The quick form of ``leyden bench align`` runs whole where TRL is installed; without it, the user is told."""

import json

import pytest

from leyden.bench.align import run as align
from leyden.bench.align.plan import QUICK, chats, pairs, prompts, reward
from leyden.core.errors import UserError

TEXT = ["def f(x):\n    return x + 1\n" * 40]


@pytest.mark.slow
def test_quick_form_measures_every_row(tmp_path, capsys):
    pytest.importorskip("trl")
    result = align.run_align(quick=True, output=tmp_path / "align.json")
    assert [row.unit for row in result.rows] == [
        *("answer tokens/s", "MB"),
        *("pairs/s", "MB"),
        *("completions/s", "tokens/s", "MB"),
    ]
    assert all(row.ours > 0 and row.theirs is not None and row.theirs > 0 for row in result.rows)
    assert result.checks["largest_logit_difference"] < 1e-4
    assert len(json.loads((tmp_path / "align.json").read_text())["rows"]) == len(result.rows)
    assert "these figures mean nothing" in capsys.readouterr().out


def test_rows_are_the_same_every_time_and_differ_among_themselves():
    for rows, work in ((chats, "sft"), (pairs, "dpo"), (prompts, "grpo")):
        found = rows(TEXT, QUICK)
        assert found == rows(TEXT, QUICK) and len(found) == QUICK.rows[work] * (QUICK.steps[work] + 1)
        assert len({json.dumps(row) for row in found}) == len(found)
    assert reward("a b c") > reward("abc") == 0.0 == reward("")


def test_without_trl_the_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(align.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        align.run_align(quick=True)
