"""A directory belongs to one recipe: what a later command may leave open, and what it may not change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leyden.core.errors import UserError
from leyden.recipes import Recipe, run
from leyden.recipes.loader import dry, parse_recipe
from leyden.recipes.resolve import adopt, earlier_recipe


def recipe(*stages: dict[str, Any], **sections: Any) -> Recipe:
    whole = [{"name": f"stage {i}", "objective": "pretrain", "steps": 10, **stage} for i, stage in enumerate(stages)]
    return parse_recipe({"stage": whole, **sections}, "a recipe")


def test_a_new_directory_takes_any_recipe(tmp_path: Path) -> None:
    assert earlier_recipe(tmp_path / "none", "never") is None
    assert adopt(recipe({}), None, tmp_path) == recipe({})


def test_what_was_measured_is_taken_over(tmp_path: Path) -> None:
    asked = recipe({"steps": None, "minutes": 2.0}, {"tokens": 100_000, "steps": None})
    settled = recipe({"steps": 77, "minutes": 2.0}, {"tokens": 100_000, "steps": None}, train={"dtype": "float32"})
    assert adopt(asked, settled, tmp_path) == settled
    assert adopt(settled, settled, tmp_path) == settled


def test_every_difference_is_named_with_both_values(tmp_path: Path) -> None:
    before = recipe({"lr": 1e-3}, {}, train={"seed": 1, "dtype": "float32"}, data={"text": ["a.txt"]})
    now = recipe({"lr": 2e-3}, {}, train={"seed": 2, "dtype": "bfloat16"}, data={"text": ["a.txt", "b.txt"]})
    with pytest.raises(UserError) as caught:
        adopt(now, before, tmp_path)
    message = str(caught.value)
    assert "data.text is ['a.txt'] there and ['a.txt', 'b.txt'] now" in message
    assert "stage.0.lr is 0.001 there and 0.002 now" in message
    assert "train.dtype is 'float32' there and 'bfloat16' now" in message
    assert "train.seed is 1 there and 2 now" in message
    assert message.count(" there and ") == 4
    assert "or give another --dir" in message


def test_a_run_may_go_on_under_another_plan(tmp_path: Path) -> None:
    before = recipe({}, train={"dtype": "float32"})
    now = recipe(
        {},
        train={"dtype": "float32", "checkpoint_steps": 7, "keep_checkpoints": 5, "max_skipped_steps": 2},
        parallel={"cp": 2, "timeout_seconds": 30.0},
    )
    assert adopt(now, before, tmp_path) == now
    assert adopt(before, now, tmp_path) == before


def test_other_lengths_and_stages_are_differences(tmp_path: Path) -> None:
    timed = recipe({"steps": 77, "minutes": 2.0})
    for other in (recipe({"steps": None, "minutes": 3.0}), recipe({"steps": 76, "minutes": 2.0}), recipe({}, {})):
        with pytest.raises(UserError, match=r"holds a run of another recipe: .*stage"):
            adopt(other, timed, tmp_path)


def test_a_run_that_has_its_tokens_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(dry(recipe({})))
    assert earlier_recipe(tmp_path, "never") is None  # nothing was made by it yet
    (tmp_path / "data").mkdir()
    assert earlier_recipe(tmp_path, "auto") == recipe({})
    with pytest.raises(UserError, match=r"holds a run already and --resume never .*; give another --dir"):
        earlier_recipe(tmp_path, "never")


def test_the_command_line_refuses_another_recipe_and_touches_nothing(
    finished: Path, recipe_file: Path, leyden_cli: Callable[..., Any]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    outcome = leyden_cli("run", recipe_file, "--dir", finished, "--set", "train.seed=5", "--set", "stage.long.lr=1.0")
    assert outcome.code == 2
    said = " ".join(outcome.err.split())
    assert "train.seed is 0 there and 5 now" in said
    assert "stage.1.lr is 0.002 there and 1.0 now" in said
    assert leyden_cli("run", recipe_file, "--dir", finished, "--resume", "never").code == 2
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_recipe_that_could_not_begin_may_be_corrected(text: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    small = {"hidden_size": 16, "num_hidden_layers": 1, "head_dim": 8, "rotary_dim": 4, "intermediate_size": 16}

    def with_text(folder: Path) -> Recipe:
        return recipe(
            {"steps": 1, "seq_len": 32, "batch_tokens": 32},
            model=small,
            tokenizer={"vocab_size": 300},
            data={"text": [str(folder)]},
            train={"dtype": "float32"},
        )

    with pytest.raises(UserError, match="nothing to read"):
        run(with_text(tmp_path / "empty"), tmp_path / "run")
    assert run(with_text(text), tmp_path / "run") == tmp_path / "run" / "final"
