"""A directory belongs to one recipe: what a later command may leave open, and what it may not change."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from leyden.core.errors import UserError
from leyden.recipes import Recipe, run
from leyden.recipes.loader import dry, parse_recipe
from leyden.recipes.resolve import adopt, earlier_recipe
from leyden.train import Progress


def recipe(*stages: dict[str, Any], **sections: Any) -> Recipe:
    whole = [{"name": f"stage {i}", "objective": "pretrain", "steps": 10, **stage} for i, stage in enumerate(stages)]
    return parse_recipe({"stage": whole, **sections}, "a recipe")


def test_a_new_directory_takes_any_recipe(tmp_path: Path) -> None:
    assert earlier_recipe(tmp_path / "none", "never") is None
    assert adopt(recipe({}), None, tmp_path, None) == recipe({})


def test_what_was_measured_is_taken_over(tmp_path: Path) -> None:
    asked = recipe({"steps": None, "minutes": 2.0}, {"tokens": 100_000, "steps": None})
    settled = recipe({"steps": 77, "minutes": 2.0}, {"tokens": 100_000, "steps": None}, train={"dtype": "float32"})
    for progress in (None, Progress(5, 0, 5), Progress(80, 1, 3)):
        assert adopt(asked, settled, tmp_path, progress) == settled
        assert adopt(settled, settled, tmp_path, progress) == settled


def test_every_difference_is_named_with_both_values(tmp_path: Path) -> None:
    before = recipe({"lr": 1e-3}, {}, train={"seed": 1, "dtype": "float32"}, data={"text": ["a.txt"]})
    now = recipe({"lr": 2e-3}, {}, train={"seed": 2, "dtype": "bfloat16"}, data={"text": ["a.txt", "b.txt"]})
    with pytest.raises(UserError) as caught:
        adopt(now, before, tmp_path / "a b", Progress(7, 0, 7))
    message = str(caught.value)
    assert "data.text is ['a.txt'] there and ['a.txt', 'b.txt'] now" in message
    assert "stage.0.lr is 0.001 there and 0.002 now" in message
    assert "train.dtype is 'float32' there and 'bfloat16' now" in message
    assert "train.seed is 1 there and 2 now" in message
    assert message.count(" there and ") == 4
    assert "It is at step 7, in stage 'stage 0', which can be made longer" in message
    assert f"leyden run RECIPE --from '{tmp_path}/a b@7' --dir NEW" in message
    assert message.endswith(f"leyden run '{tmp_path}/a b/recipe.toml' --dir '{tmp_path}/a b'")


BEGUN, ENDED = Progress(4, 0, 4), Progress(14, 1, 4)
"""In the first of three stages of 10 steps, and in the second."""
MIXTURE = {"point": [{"weights": {"a": 1.0, "b": 1.0}}], "max_epochs": {"a": 2.0}}
ROWS: list[tuple[str, dict[str, Any], Progress | None, str | None]] = [
    # key, its value now, how far the run is, and what is refused; docs/recipes.md has the same rows
    ("parallel.cp", {"parallel": {"cp": 2}}, ENDED, None),
    ("train.checkpoint_steps", {"train": {"checkpoint_steps": 7, "keep_checkpoints": 5}}, ENDED, None),
    ("train.async_checkpoint", {"train": {"async_checkpoint": True, "max_skipped_steps": 2}}, ENDED, None),
    ("train.sinks", {"train": {"sinks": ["tensorboard"]}}, ENDED, None),
    ("evaluate", {"evaluate": {"prompts": ["a"]}}, ENDED, None),
    ("serve", {"serve": {"max_sequences": 3}}, ENDED, None),
    ("data.build", {"data": {"build": "elsewhere"}}, ENDED, None),
    (
        "data.build",
        {"data": {"build": None, "tokens": {"a": ["a.ds"], "b": ["b.ds"]}}, "tokenizer": {"path": "t"}},
        ENDED,
        "data.tokens",
    ),
    ("model", {"model": {"hidden_size": 128}}, None, None),
    ("model", {"model": {"hidden_size": 128}}, BEGUN, "model.hidden_size"),
    ("train.seed", {"train": {"seed": 1}}, None, None),
    ("train.seed", {"train": {"seed": 1}}, BEGUN, "train.seed"),
    ("train.optimizer", {"train": {"optimizer": {"beta1": 0.8}}}, BEGUN, "train.optimizer.beta1"),
    ("a later stage", {"stage": [{}, {}, {"lr": 0.5, "name": "other", "seq_len": 64}]}, ENDED, None),
    ("a later stage", {"stage": [{}, {}]}, ENDED, None),
    ("a later stage", {"stage": [{}, {}, {}, {"steps": 99}]}, ENDED, None),
    ("a later stage", {"stage": [{}, {"lr": 0.5}, {"lr": 0.5}]}, BEGUN, None),
    ("the stage begun", {"stage": [{}, {"steps": 12}, {}]}, ENDED, None),
    ("the stage begun", {"stage": [{}, {"steps": None, "tokens": 8192 * 4}, {}]}, ENDED, None),
    ("the stage begun", {"stage": [{}, {"steps": None, "minutes": 1.0}, {}]}, ENDED, None),
    ("the stage begun", {"stage": [{}, {"mixture": MIXTURE | {"max_epochs": {"a": 3.0}}}, {}]}, ENDED, None),
    ("the stage begun", {"stage": [{}, {"steps": 3}, {}]}, ENDED, "stage.1 has taken 4 steps, and is to have 3"),
    ("the stage begun", {"stage": [{}, {"data": {"build": "c"}}, {}]}, ENDED, "stage.1.data"),
    ("the stage begun", {"stage": [{}, {"lr_changes": [[9, 1e-4]]}, {}]}, ENDED, "stage.1.lr_changes"),
    ("the stage begun", {"stage": [{}, {"lr": 0.5}, {}]}, ENDED, "stage.1.lr is 0.001 there and 0.5 now"),
    ("the stage begun", {"stage": [{}, {"name": "x"}, {}]}, ENDED, "stage.1.name"),
    ("the stage begun", {"stage": [{}]}, ENDED, "stage.1 ('stage 1') has begun and is left out"),
    ("a stage that ended", {"stage": [{"steps": None, "tokens": 81_920}, {}, {}]}, ENDED, None),
    ("a stage that ended", {"stage": [{"steps": 11}, {}, {}]}, ENDED, "stage.0.steps is 10 there and 11 now"),
    ("a stage that ended", {"stage": [{"warmup_steps": 1}, {}, {}]}, ENDED, "stage.0.warmup_steps"),
]


@pytest.mark.parametrize(("key", "now", "progress", "refused"), ROWS)
def test_what_may_change(
    tmp_path: Path, key: str, now: dict[str, Any], progress: Progress | None, refused: str | None
) -> None:
    first: dict[str, dict[str, Any]] = {
        "data": {"build": "b"},
        "train": {"dtype": "float32"},
        "model": {"vocab_size": 300},
    }

    def whole(stage: Sequence[dict[str, Any]] = ({}, {}, {}), **changes: dict[str, Any]) -> Recipe:
        sections = {name: first.get(name, {}) | changes.get(name, {}) for name in first.keys() | changes.keys()}
        return recipe(*({"mixture": MIXTURE} | one for one in stage), **sections)

    before, after = whole(), whole(**now)
    assert before != after
    if refused is None:
        assert adopt(after, before, tmp_path, progress) == after
    else:
        with pytest.raises(UserError, match="holds a run of another recipe: .*" + re.escape(refused)):
            adopt(after, before, tmp_path, progress)


def test_the_data_of_a_stage_may_lie_elsewhere_and_no_more(tmp_path: Path) -> None:
    first: dict[str, Any] = {"data": {"build": "b"}, "train": {"dtype": "float32"}, "model": {"vocab_size": 300}}
    before, moved, other = (
        recipe({}, {"data": data}, **first) for data in ({"build": "c"}, {"build": "d"}, {"text": ["e"]})
    )
    assert adopt(moved, before, tmp_path, ENDED) == moved
    with pytest.raises(UserError, match=r"stage\.1\.data\.text"):
        adopt(other, before, tmp_path, ENDED)
    assert adopt(other, before, tmp_path, BEGUN) == other  # that stage is still to come


def test_the_bound_of_drift_may_change_and_no_other_setting_of_completions(tmp_path: Path) -> None:
    sizes = {"objective": "rl", "seq_len": 96, "micro_batch_tokens": 96}
    how: dict[str, Any] = {"environment": "own.py:Own", "max_tokens": 8}
    before, bounded, others = (
        recipe(sizes | {"rl": how | change}, model={"vocab_size": 300}, tokenizer={"path": "t"})
        for change in ({}, {"max_drift": 0.1, "kept_rollouts": 0}, {"group_size": 4})
    )
    assert adopt(bounded, before, tmp_path, BEGUN) == bounded
    with pytest.raises(UserError, match=r"stage\.0\.rl\.group_size is 8 there and 4 now"):
        adopt(others, before, tmp_path, BEGUN)


def test_a_mixture_with_shares_of_the_stage_keeps_its_length(tmp_path: Path) -> None:
    late = MIXTURE | {"late": [{"source": "a", "share": 0.5, "last": 0.5}]}
    first: dict[str, Any] = {"data": {"build": "b"}, "train": {"dtype": "float32"}, "model": {"vocab_size": 300}}
    before, longer = (recipe({"steps": steps, "mixture": late}, **first) for steps in (10, 12))
    with pytest.raises(UserError, match=r"stage\.0\.steps is 10 there and 12 now; the mixture of stage\.0 has marks"):
        adopt(longer, before, tmp_path, BEGUN)


def test_a_model_without_checkpoints_cannot_be_trained_on(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    assert adopt(recipe({}, evaluate={"prompts": ["a"]}), recipe({}), tmp_path, None)
    for other in (recipe({"steps": 11}), recipe({}, {}), recipe({"lr": 1.0})):
        with pytest.raises(UserError, match=r"stage.*its checkpoints are gone"):
            adopt(other, recipe({}), tmp_path, None)


def test_until_its_first_checkpoint_a_run_has_its_tokens_alone(tmp_path: Path) -> None:
    tokenizer = {"vocab_size": 300}
    before = recipe({}, data={"text": ["a.txt"]}, tokenizer=tokenizer)
    other = recipe({"lr": 0.5}, {}, data={"text": ["a.txt"]}, tokenizer=tokenizer, train={"seed": 5})
    assert adopt(other, before, tmp_path, None) == other
    for key, changed in (
        ("data.text", recipe({}, data={"text": ["b.txt"]}, tokenizer=tokenizer)),
        ("data.held_out", recipe({}, data={"text": ["a.txt"], "held_out_fraction": 0.5}, tokenizer=tokenizer)),
        ("tokenizer.vocab_size", recipe({}, data={"text": ["a.txt"]}, tokenizer={"vocab_size": 400})),
    ):
        with pytest.raises(UserError, match=f"read its documents by another recipe: {key}.* remove .*/data; or give"):
            adopt(changed, before, tmp_path, None)


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
