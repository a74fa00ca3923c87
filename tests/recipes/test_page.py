"""docs/recipes.md says every key of a recipe with its default, and no other."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from leyden.align.policy import Algorithm, CriticSettings
from leyden.align.rollouts import RolloutSettings
from leyden.core.config import Config, dump_toml
from leyden.data.loader.fill_in_middle import FillInMiddle
from leyden.model import PRESETS, ModelConfig, RopeScaling
from leyden.model.lora import LoraConfig
from leyden.parallel import ParallelConfig
from leyden.recipes import Recipe, TrainingStage
from leyden.recipes.loader import parse_recipe
from leyden.recipes.sections import DataSection, EvaluateSection, TaskSection, TokenizerSection
from leyden.recipes.starting import CHANGEABLE
from leyden.serve.config import EngineConfig
from leyden.train import AdamWConfig, RunSettings
from leyden.train.muon import MuonConfig
from leyden.train.mup import MupConfig
from leyden.train.spikes import SpikeSettings

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS: dict[str, tuple[type[Config], set[str]]] = {
    "[model]": (ModelConfig, {"rope_scaling"}),  # a table of its own
    "[model.rope_scaling]": (RopeScaling, set()),
    "[tokenizer]": (TokenizerSection, set()),
    "[data]": (DataSection, set()),
    "[train]": (RunSettings, {"optimizer", "spikes", "lora", "mup"}),  # tables of their own
    "[train.spikes]": (SpikeSettings, set()),
    "[train.optimizer]": (AdamWConfig, {"muon"}),  # a table of its own
    "[train.optimizer.muon]": (MuonConfig, set()),
    "[train.mup]": (MupConfig, set()),
    "[train.lora]": (LoraConfig, set()),
    "[parallel]": (ParallelConfig, set()),
    "[[stage]]": (TrainingStage, set()),
    "[stage.fim]": (FillInMiddle, set()),
    "[stage.rl]": (RolloutSettings, {"algorithm", "critic", "engine"}),  # tables of their own
    "[stage.rl.algorithm]": (Algorithm, set()),
    "[stage.rl.critic]": (CriticSettings, set()),
    "[evaluate]": (EvaluateSection, {"task"}),
    "[[evaluate.task]]": (TaskSection, set()),
    "[serve]": (EngineConfig, set()),
}


def rows(section: str) -> dict[str, tuple[str, str]]:
    """(default, meaning) by key, from the table of a section."""
    text = PAGE.partition(f"### `{section}`")[2].partition("\n#")[0]
    found = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", text, flags=re.MULTILINE)
    assert len({key for key, _, _ in found}) == len(found)
    return {key: (default, meaning) for key, default, meaning in found}


def said(default: Any) -> str:
    """A default as the page writes it."""
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "none"
    text = " ".join(dump_toml({"x": default}).split()).removeprefix("x = ")
    return f"`{text.replace('[ ', '[').replace(', ]', ']')}`"


def test_the_page_has_the_sections_of_a_recipe() -> None:
    assert re.findall(r"^### `(.+)`$", PAGE, flags=re.MULTILINE) == list(SECTIONS)
    sections = {name for name, field in Recipe.model_fields.items() if not field.exclude}
    assert {section.strip("[]").partition(".")[0] for section in SECTIONS} == sections


@pytest.mark.parametrize("section", SECTIONS)
def test_each_key_is_there_with_its_default(section: str) -> None:
    config, others = SECTIONS[section]
    expected = {name: said(field.default) for name, field in config.model_fields.items() if name not in others}
    assert {key: default for key, (default, _) in rows(section).items()} == expected


def test_every_preset_is_named() -> None:
    assert all(f"`{name}`" in PAGE for name in PRESETS)


def test_the_page_says_what_may_change_beside_from() -> None:
    section = PAGE.partition("**Beside `from`**")[2].partition("- **")[0]
    assert tuple(re.findall(r"`(\w+)`", section.partition("may change")[2])) == CHANGEABLE


def test_the_example_of_beginning_from_a_model() -> None:
    section = PAGE.partition("## Beginning from a model")[2]
    example = tomllib.loads(section.partition("```toml\n")[2].partition("```")[0])
    assert set(example["model"]) == {"from", "rope_theta"}
    assert parse_recipe(example | {"model": {}}, "the example").stage[0].total_steps == 31


def test_the_example_is_a_recipe() -> None:
    example = PAGE.partition("```toml\n")[2].partition("```")[0]
    recipe = parse_recipe(tomllib.loads(example), "the example")
    assert [stage.name for stage in recipe.stage] == ["short", "long"]
