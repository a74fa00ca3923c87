"""Documents in which numbers are hidden are a group that stages mix; a text too small for any has none."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from whole_runs import SMALL_MODEL

from leyden.core.errors import UserError
from leyden.recipes.batches import check_batches, make_batches
from leyden.recipes.loader import load_recipe, parse_recipe
from leyden.recipes.stage_data import prepare_all, read_all


def made(place: Path, text: str, weights: dict[str, float]) -> tuple[set[str], Any]:
    """The groups of a run on ten documents of ``text``, and the batches of its stage."""
    (place / "text").mkdir()
    for number in range(10):
        (place / "text" / f"{number}.md").write_text(f"{text} and so on {number}")
    stage = {"name": "one", "objective": "pretrain", "steps": 2, "seq_len": 64, "batch_tokens": 64}
    recipe = parse_recipe(
        {
            "model": SMALL_MODEL,
            "tokenizer": {"vocab_size": 300, "allow_smaller": True},
            "data": {
                "text": {"text": [str(place / "text")]},
                "recall_share": 1.0,
                "recall_group": "needles",
                "recall_learn": "answers",
                "held_out_fraction": 0.2,
            },
            "stage": [{**stage, "mixture": {"point": [{"weights": weights}]}}],
        },
        "test",
    )
    prepare_all(recipe, place)
    prepared = read_all(recipe, place)
    check_batches(recipe, prepared)
    return set(prepared.shards), make_batches(recipe, 0, prepared)


def test_numbers_are_hidden_in_long_documents(tmp_path: Path) -> None:
    groups, batches = made(tmp_path, "the quick brown fox " * 60, {"text": 1, "needles": 1})
    assert groups == {"text", "needles"}
    assert batches.batch(0) is not None


def test_a_text_too_small_for_any_is_trained_on_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups, batches = made(tmp_path, "the quick brown fox", {"text": 1, "needles": 1})
    assert groups == {"text"}
    assert batches.batch(0) is not None
    assert "no document is in 'needles', and stages mix without it" in " ".join(capsys.readouterr().err.split())


def test_a_stage_of_them_alone_is_refused_then(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage 'one': the mixture names 'needles', which is no source"):
        made(tmp_path, "the quick brown fox", {"text": 0, "needles": 1})


def test_the_quickstart_hides_numbers_in_all_of_a_small_text_and_in_a_tenth_of_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickstart_module = importlib.import_module("leyden.recipes.quickstart")
    monkeypatch.setattr(quickstart_module, "run", lambda recipe, directory: recipe)
    assert load_recipe("quickstart").data.recall_share == 0.1
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.md").write_text("x" * 1000)
    for hidden_in, share in ((3_000_000, 1.0), (250, 0.25), (1, 0.1)):
        monkeypatch.setattr(quickstart_module, "_HIDE_IN_BYTES", hidden_in)
        recipe: Any = quickstart_module.quickstart(text=[tmp_path / "notes"])
        assert recipe.data.recall_share == share
        assert recipe.data.groups == {"text", "needles"}
