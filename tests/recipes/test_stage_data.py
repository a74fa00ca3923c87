"""Data of a stage's own: read with the run's tokenizer, checked, resumed on, and read anew where the recipe changes."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_runs import SMALL_MODEL, after_step, assert_same_run, interrupt, metrics

from leyden.core.errors import UserError
from leyden.recipes import Recipe
from leyden.recipes.batches import check_batches, make_batches
from leyden.recipes.loader import dry, parse_recipe
from leyden.recipes.resolve import located
from leyden.recipes.stage_data import look_at, not_there, prepare_all, read_all
from leyden.tokenizer import Tokenizer

STAGE = {"objective": "pretrain", "steps": 2, "seq_len": 64, "batch_tokens": 128}


def write(folder: Path, word: str, count: int = 12) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        text = " ".join(f"{word} {number * n} and {word}s" for n in range(1, 10 + 5 * number))
        (folder / f"{number}.txt").write_text(text)
    return str(folder)


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """Two stages, of which the second has two groups of text."""
    long = {name: [write(tmp_path / name, name)] for name in ("apple", "plum")}
    mixture = {"point": [{"weights": {"apple": 1, "plum": 3}}]}
    return {
        "model": SMALL_MODEL,
        "tokenizer": {"vocab_size": 280},
        "data": {"text": [write(tmp_path / "pear", "pear")], "held_out_fraction": 0.1},
        "train": {"dtype": "float32"},
        "stage": [{"name": "one", **STAGE}, {"name": "two", **STAGE, "data": {"text": long}, "mixture": mixture}],
        "evaluate": {"every_steps": 2, "prompts": ["apple"], "sample_tokens": 2},
    }


def parsed(recipe: dict[str, Any]) -> Recipe:
    return located(parse_recipe(recipe, "test"))


def decoded(prepared: Any, batch: Any) -> str:
    return prepared.tokenizer.decode(batch.tokens[0].tolist())


def test_each_stage_reads_its_own(recipe: dict[str, Any], tmp_path: Path) -> None:
    made = parsed(recipe)
    assert parse_recipe(tomllib.loads(dry(made)), "printed") == made
    prepare_all(made, tmp_path / "run")
    prepared = read_all(made, tmp_path / "run")
    check_batches(made, prepared)
    one, two = (make_batches(made, index, prepared).batch(0) for index in range(2))
    assert "pear" in decoded(prepared, one) and "plum" not in decoded(prepared, one)
    assert "plum" in decoded(prepared, two) and "pear" not in decoded(prepared, two)
    assert set(prepared.own["two"].shards) == {"apple", "plum"}
    prints = {shards.tokenizer_fingerprint for shards in prepared.own["two"].shards.values()}
    assert prints == {prepared.tokenizer.fingerprint}
    assert all("apple" in one.text or "plum" in one.text for one in prepared.own["two"].held_out)
    assert set(read_all(made, tmp_path / "run", first=2).own) == set()


@pytest.mark.slow
def test_other_data_are_read_anew_and_the_same_are_not(recipe: dict[str, Any], tmp_path: Path) -> None:
    made, directory = parsed(recipe), tmp_path / "run"
    prepare_all(made, directory)
    place = directory / "stage_data" / "two" / "data" / "groups.json"
    before = place.stat().st_mtime_ns
    prepare_all(made, directory)
    assert place.stat().st_mtime_ns == before
    recipe["stage"][1]["data"]["text"].pop("apple")
    recipe["stage"][1]["mixture"]["point"][0]["weights"] = {"plum": 1}
    prepare_all(parsed(recipe), directory)
    assert set(json.loads(place.read_text())["groups"]) == {"plum"}


def test_damage_is_named_with_its_stage(recipe: dict[str, Any], tmp_path: Path) -> None:
    made, directory = parsed(recipe), tmp_path / "run"
    prepare_all(made, directory)
    (directory / "stage_data" / "two" / "held_out.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"stage 'two': .*stage_data/two/held_out.jsonl is missing, or not what"):
        read_all(made, directory)


@pytest.mark.slow
def test_stopped_in_the_stage_and_gone_on_with(
    recipe: dict[str, Any], tmp_path: Path, leyden_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(dry(parsed(recipe)))
    assert leyden_cli("run", path, "--dir", tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        after_step(patch, 3, interrupt)
        assert leyden_cli("run", path, "--dir", tmp_path / "run").code == 130
    changed = ("--set", "stage.two.mixture.point.0.weights.plum=5")
    refused = leyden_cli("run", path, "--dir", tmp_path / "run", *changed)
    assert refused.code == 2 and "stage.1.mixture.point.0.weights.plum is 3.0 there and 5.0 now" in refused.err
    outcome = leyden_cli("run", path, "--dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "stage two: 2 steps of 128 tokens; 256 in all, 64 a sequence" in outcome.err
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert [line["stage"] for line in metrics(tmp_path / "run") if "held_out_loss" in line] == ["one", "two"]


def test_a_build_of_the_runs_tokenizer_and_of_another(recipe: dict[str, Any], built: Path, tmp_path: Path) -> None:
    recipe["stage"][1] |= {"data": {"build": str(built)}, "mixture": None}
    with pytest.raises(UserError, match=r"stage 'two': its data have a tokenizer .* name that one by tokenizer.path"):
        parse_recipe(recipe, "test")
    recipe["tokenizer"] = {"path": str(built / "tokenizer")}
    looked = look_at(parsed(recipe), tmp_path / "none")
    assert looked is not None and not looked.shards and set(looked.own["two"].shards) == {"first", "second"}
    check_batches(parsed(recipe), looked)
    Tokenizer.train(["to be or not to be"] * 2, vocab_size=264).save(tmp_path / "other")
    recipe["tokenizer"] = {"path": str(tmp_path / "other")}
    recipe["model"] = SMALL_MODEL | {"vocab_size": 300}
    with pytest.raises(UserError, match="stage 'two': its data have the tokens of another tokenizer than the run"):
        look_at(parsed(recipe), tmp_path / "none")


def test_a_build_that_is_still_to_be_made(recipe: dict[str, Any], built: Path, tmp_path: Path) -> None:
    recipe["tokenizer"] = {"path": str(built / "tokenizer")}
    recipe["stage"][1] |= {"data": {"build": str(tmp_path / "none")}, "mixture": None}
    made = parsed(recipe)
    assert not_there(made) == f"# {tmp_path / 'none'} is not there yet: nothing was checked of its data.\n"
    assert look_at(made, tmp_path / "run") is None
    with pytest.raises(UserError, match=r"stage 'two': .*none"):
        prepare_all(made, tmp_path / "run")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"text": {"apple": []}}, "group apple names no files"),
        ({"text": {"apple": ["x"]}}, "its mixture names plum, and the groups of its data are apple"),
        ({"texts": []}, "unknown key 'stage.1.data.texts'; did you mean 'text'"),
        ({"text": ["x"], "recall_group": "qa"}, "recall_group goes with recall_share"),
    ],
)
def test_data_that_cannot_be(recipe: dict[str, Any], data: dict[str, Any], says: str) -> None:
    recipe["stage"][1]["data"] = data
    with pytest.raises(UserError, match=says):
        parse_recipe(recipe, "test")


@pytest.fixture
def alone(recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Its one stage has data of its own, and the tokenizer is there."""
    Tokenizer.train(["apples and pears"] * 2, vocab_size=264).save(tmp_path / "tokenizer")
    given = recipe | {"tokenizer": {"path": str(tmp_path / "tokenizer")}, "stage": recipe["stage"][1:]}
    del given["data"]
    return given


def test_documents_that_no_stage_trains_on_are_not_read(alone: dict[str, Any], tmp_path: Path) -> None:
    made = parsed(alone)
    looked = look_at(made, tmp_path / "none")
    assert not made.reads_data and looked is not None and not looked.shards
    prepare_all(made, tmp_path / "run")
    prepared = read_all(made, tmp_path / "run")
    check_batches(made, prepared)
    assert not prepared.shards and not prepared.held_out and set(prepared.own["two"].shards) == {"apple", "plum"}
    assert "plum" in decoded(prepared, make_batches(made, 0, prepared).batch(0))


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": {"vocab_size": 280}},
        {"data": {"held_out_fraction": 0.2}},
        {"evaluate": {"task": [{"task": "perplexity_by_position", "every_steps": 0, "held_out": True}]}},
        {"stage": [{"name": "one", **STAGE}]},
    ],
)
def test_documents_that_something_needs_are_read(alone: dict[str, Any], change: dict[str, Any]) -> None:
    assert parsed(alone | change).reads_data


def test_a_stage_may_read_the_documents_that_are_taken_by_default(alone: dict[str, Any], tmp_path: Path) -> None:
    made = parsed(alone | {"stage": [{"name": "two", **STAGE, "data": {}}]})
    looked = look_at(made, tmp_path / "none")
    assert looked is not None and not looked.own  # they are still to be read
