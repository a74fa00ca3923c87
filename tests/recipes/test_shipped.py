"""Every recipe that ships loads, and says in full what it says in short."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leyden.model import PRESETS
from leyden.recipes import default_directory, load_recipe
from leyden.recipes.loader import parse_recipe, shipped_recipes
from leyden.recipes.resolve import located


def test_there_are_some() -> None:
    assert "quickstart" in shipped_recipes()


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_survives_being_written_out(name: str, tmp_path: Path, leyden_cli: Callable[..., Any]) -> None:
    outcome = leyden_cli("run", name, "--dry-run", "--dir", tmp_path / "run")
    said = [line for line in outcome.err.splitlines() if not line.startswith(("chats: ", "pairs: "))]  # what it read
    assert (outcome.code, said) == (0, [])
    written = tmp_path / "written.toml"
    written.write_text(outcome.out)
    assert load_recipe(str(written)) == located(load_recipe(name))


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_of_any_preset_survives_being_written_out(
    name: str, tmp_path: Path, leyden_cli: Callable[..., Any]
) -> None:
    short = tmp_path / "short.toml"
    own = (
        "model.vision.image_token_id = 5\n" if name == "vl-01" else ""
    )  # that of the release is beyond this vocabulary
    short.write_text(
        f"model.preset = '{name}'\n{own}[[stage]]\nname = 'a'\nobjective = 'pretrain'\ntokens = 1_000_000\n"
    )
    outcome = leyden_cli("run", short, "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    (tmp_path / "written.toml").write_text(outcome.out)
    assert load_recipe(str(tmp_path / "written.toml")) == load_recipe(str(short))


def test_fewer_layers_of_a_preset_need_no_new_pattern() -> None:
    stage = {"name": "a", "objective": "pretrain", "steps": 1}
    recipe = parse_recipe({"model": {"preset": "410m", "num_hidden_layers": 8}, "stage": [stage]}, "mine.toml")
    assert recipe.model.layer_types == ("linear_attention",) * 7 + ("full_attention",)


def test_a_run_is_kept_under_the_name_of_its_recipe() -> None:
    assert default_directory("quickstart") == default_directory("some/where/quickstart.toml") == Path("runs/quickstart")
