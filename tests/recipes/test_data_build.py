"""From a data build to a trained model: its tokens, its mixture, its held-out documents."""

import json
import tomllib
from pathlib import Path

import pytest
from whole_runs import SMALL_MODEL, on_build

from leyden.core.errors import UserError
from leyden.recipes import run
from leyden.recipes.loader import dry, parse_recipe
from leyden.recipes.prepare import read_build
from leyden.tokenizer import Tokenizer


def test_a_run_on_a_build(built: Path, tmp_path: Path) -> None:
    mixture = {"point": [{"step": 0, "weights": {"first": 1}}, {"step": 2, "weights": {"second": 1}}]}
    run(parse_recipe(on_build(built, mixture=mixture), "test"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    result = json.loads((tmp_path / "run" / "eval.jsonl").read_text().splitlines()[-1])
    held_out = [path for path in (built / "stages").iterdir() if path.name.endswith("hold_out")]
    assert len(held_out) == 1
    assert result["value"] > 0
    assert set(json.loads((tmp_path / "run" / "data.json").read_text())) == {"tokenizer", "first", "second"}


def test_without_a_mixture_each_gives_what_it_has(built: Path, tmp_path: Path) -> None:
    run(parse_recipe(on_build(built, packing="best_fit"), "test"), tmp_path / "run")
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


def test_a_mixture_of_other_groups(built: Path, tmp_path: Path) -> None:
    mixture = {"point": [{"step": 0, "weights": {"frist": 1}}]}
    with pytest.raises(UserError, match=r"frist.*first"):
        run(parse_recipe(on_build(built, mixture=mixture), "test"), tmp_path / "run")
    capped = {"point": [{"step": 0, "weights": {"first": 1, "second": 0}}], "max_epochs": {"first": 0.001}}
    with pytest.raises(UserError, match="more than its max_epochs"):
        run(parse_recipe(on_build(built, mixture=capped), "test"), tmp_path / "run")
    run(
        parse_recipe(on_build(built), "test"), tmp_path / "run"
    )  # nothing was made by those, so another recipe may begin


def test_a_build_without_tokens(built: Path, tmp_path: Path) -> None:
    (built / "tokens" / "groups.json").unlink()
    with pytest.raises(UserError, match=r"has no tokens; give its recipe a \[tokens\] table"):
        run(parse_recipe(on_build(built), "test"), tmp_path / "run")


def test_other_tokens_are_another_run(built: Path, tmp_path: Path) -> None:
    run(parse_recipe(on_build(built), "test"), tmp_path / "run")
    (tmp_path / "run" / "report" / "index.html").unlink()
    (tmp_path / "run" / "build.json").write_text('{"first": "other"}')
    with pytest.raises(UserError, match="has other tokens"):
        run(parse_recipe(on_build(built), "test"), tmp_path / "run")


def test_build_and_text_exclude_each_other(built: Path) -> None:
    given = on_build(built)
    given["data"] = {"build": str(built), "text": ["a.txt"]}
    with pytest.raises(UserError, match="give either text"):
        parse_recipe(given, "test")


def test_the_vocabulary_is_the_builds(built: Path, tmp_path: Path) -> None:
    assert parse_recipe(on_build(built), "test").model.vocab_size == 300
    for rows, fits in ((299, False), (300, True), (320, True)):
        given = on_build(built) | {"model": {**SMALL_MODEL, "vocab_size": rows}}
        if fits:
            assert read_build(parse_recipe(given, "test")).tokenizer.vocab_size == 300
        else:
            with pytest.raises(UserError, match=r"model.vocab_size \(299\) is smaller than .* \(300\)"):
                run(parse_recipe(given, "test"), tmp_path / "run")


def test_a_tokenizer_beside_a_build_is_refused(built: Path) -> None:
    with pytest.raises(UserError, match=r"\[tokenizer\] does not go with data.build.*leave \[tokenizer\] out"):
        parse_recipe(on_build(built) | {"tokenizer": {"vocab_size": 300}}, "test")


def test_a_resolved_recipe_is_read_without_its_build(built: Path) -> None:
    resolved = tomllib.loads(dry(parse_recipe(on_build(built), "test")))
    assert "tokenizer" not in resolved
    resolved["data"]["build"] = str(built / "gone")
    assert parse_recipe(resolved, "test").model.vocab_size == 300


def test_tokens_of_another_tokenizer(built: Path, tmp_path: Path) -> None:
    Tokenizer.train(["to be or not to be"] * 2, vocab_size=264).save(built / "tokenizer")
    given = on_build(built) | {"model": {**SMALL_MODEL, "vocab_size": 300}}
    with pytest.raises(UserError, match="tokenizer"):
        run(parse_recipe(given, "test"), tmp_path / "run")
