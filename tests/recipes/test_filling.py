"""Fill-in-the-middle in a run: its special tokens, its batches, its resume; what is held out stays as it is."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_runs import after_step, assert_same_run

from leyden.core.config import dump_toml
from leyden.core.errors import UserError
from leyden.data.loader.fill_in_middle import FillInMiddle
from leyden.recipes.batches import make_batches
from leyden.recipes.loader import load_recipe, parse_recipe
from leyden.recipes.prepare import read_prepared
from leyden.tokenizer import Tokenizer

Cli = Callable[..., Any]
STAGE = {"name": "fill", "objective": "pretrain", "steps": 6, "seq_len": 128, "batch_tokens": 256}
NAMES = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")


@pytest.fixture(scope="module")
def recipe(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = tomllib.loads(recipe_file.read_text())
    small |= {"stage": [STAGE | {"fim": {"rate": 0.8, "spm_share": 0.5}}], "train": {"checkpoint_steps": 2}}
    path = tmp_path_factory.mktemp("filling") / "fill.toml"
    path.write_text(dump_toml(small))
    return path


@pytest.fixture(scope="module")
def run(recipe: Path, leyden_cli: Cli) -> Path:
    outcome = leyden_cli("run", recipe, "--dir", recipe.parent / "run")
    assert outcome.code == 0, outcome.err
    return recipe.parent / "run"


def test_a_run_trains_on_rearranged_documents(run: Path) -> None:
    recipe, tokenizer = load_recipe(str(run / "recipe.toml")), Tokenizer.load(run / "tokenizer")
    ids = [tokenizer.encode(name, allow_special=True) for name in NAMES]
    assert all(len(one) == 1 and tokenizer.is_special(one[0]) for one in ids)
    assert recipe.model.vocab_size == tokenizer.vocab_size == 500
    prepared = read_prepared(recipe, run)
    plain = prepared.shards["all"]
    batches = make_batches(recipe, 0, prepared)
    tokens = [token for number in range(150) for token in batches.batch(number).tokens[0].tolist()]
    counts = [tokens.count(one[0]) for one in ids]
    assert min(counts) > 5 and max(counts) - min(counts) <= 2  # a sequence cuts a document
    assert not any(name in text for name in NAMES for text in (run / "held_out.jsonl").read_text().splitlines())
    assert all(one[0] not in plain.document(0).tolist() for one in ids)


def test_a_run_that_is_killed_goes_on_with_the_same_documents(
    run: Path, recipe: Path, leyden_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = recipe.parent / "killed"
    with monkeypatch.context() as patch:
        after_step(patch, 3, lambda: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            leyden_cli("run", recipe, "--dir", directory)
    assert leyden_cli("run", recipe, "--dir", directory).code == 0
    assert_same_run(directory, run)


def test_a_tokenizer_without_the_tokens_is_refused(finished: Path, recipe: Path, leyden_cli: Cli) -> None:
    small = tomllib.loads(recipe.read_text())
    small["model"], small["tokenizer"] = {"from": str(finished)}, {}
    path = recipe.parent / "from.toml"
    path.write_text(dump_toml(small))
    outcome = leyden_cli("run", path, "--dir", recipe.parent / "from")
    said = " ".join(outcome.err.split())
    assert outcome.code == 2
    assert "stage 'fill': fim writes the special tokens <fim_prefix>, <fim_suffix>, <fim_middle>" in said
    assert "the tokenizer does not have <fim_prefix>, <fim_suffix>, <fim_middle>" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "sft", "fim": {}}, "fim is for objective = 'pretrain', and objective is 'sft'; leave it out"),
        ({"fim": {"rate": 0}}, "fim.rate"),
        ({"fim": {"rate": 1.5}}, "fim.rate"),
        ({"fim": {"spm_share": -1}}, "fim.spm_share"),
        ({"fim": {"middle": "<fim_prefix>"}}, "must be different tokens"),
        ({"fim": {"ratio": 0.5}}, "rate"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_recipe({"stage": [STAGE | changes]}, "mine.toml")


def test_a_trained_tokenizer_has_further_special_tokens(tmp_path: Path, leyden_cli: Cli) -> None:
    (tmp_path / "a.txt").write_text("a jar keeps lightning, a jar keeps it " * 20)
    special = [part for token in FillInMiddle().tokens for part in ("--special", token)]
    arguments = ["--dir", tmp_path / "tok", "--vocab-size", "270", *special]
    outcome = leyden_cli("tokenizer", "train", tmp_path / "a.txt", *arguments)
    assert outcome.code == 0, outcome.err
    tokenizer = Tokenizer.load(tmp_path / "tok")
    assert tokenizer.vocab_size == 270
    assert [tokenizer.encode(token, allow_special=True) for token in NAMES] == [[267], [268], [269]]
    assert len(tokenizer.encode("<fim_prefix>")) > 1  # in text it is text
    arguments[3] = "263"
    outcome = leyden_cli("tokenizer", "train", tmp_path / "a.txt", *arguments)
    assert outcome.code == 2
    assert "the 256 bytes and 8 special tokens make 264" in " ".join(outcome.err.split())
