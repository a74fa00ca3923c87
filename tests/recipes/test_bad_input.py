"""What a user may get wrong: one paragraph, exit code 2, no traceback."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Refused = Callable[..., str]


@pytest.fixture
def refused(leyden_cli: Callable[..., Any], recipe_file: Path, tmp_path: Path) -> Refused:
    """Runs the small recipe with settings; gives the paragraph of the refusal."""

    def run(*settings: str, recipe: str | Path = recipe_file) -> str:
        changes = [part for setting in settings for part in ("--set", setting)]
        outcome = leyden_cli("run", recipe, "--dir", tmp_path / "run", *changes)
        assert outcome.code == 2, outcome.err
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        last = outcome.err.splitlines()[-1]
        assert last.startswith("error: ")
        return last

    return run


def test_an_unknown_key(refused: Refused, recipe_file: Path) -> None:
    assert refused("train.sed=1") == f"error: {recipe_file}: unknown key 'train.sed'; did you mean 'seed'?"


def test_an_unknown_stage(refused: Refused) -> None:
    assert "no item 'lnog' among 2; did you mean 'long'?" in refused("stage.lnog.lr=1e-3")


def test_a_setting_without_a_value(refused: Refused) -> None:
    assert "expected path=value" in refused("train.seed")


def test_an_unknown_recipe(refused: Refused) -> None:
    assert "did you mean 'quickstart'?" in refused(recipe="quickstat")


def test_a_recipe_that_is_not_toml(refused: Refused, tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    assert "is not a TOML file" in refused(recipe=broken)


def test_a_folder_given_as_a_recipe(refused: Refused, tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refused(recipe=tmp_path)


def test_an_impossible_shape(refused: Refused) -> None:
    assert "num_attention_heads (2) must be a multiple of num_key_value_heads (5)" in refused(
        "model.num_key_value_heads=5"
    )


def test_text_that_is_not_there(refused: Refused) -> None:
    assert "no/such/text does not exist; give files or folders of text" in refused('data.text=["no/such/text"]')


def test_an_empty_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "nothing to read" in refused(f'data.text=["{tmp_path / "empty"}"]')


def test_a_file_that_is_no_text(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert "is not a file of a kind that is read; allowed: .txt" in refused(f'data.text=["{tmp_path / "image.png"}"]')


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("binary.txt", b"abc\0def", "binary (a NUL byte)"),
        ("latin.txt", "déjà vu".encode("latin-1"), "not UTF-8"),
        ("cut.txt.gz", gzip.compress(b"some text " * 1000)[:-20], "corrupt gzip"),
        ("noise.txt.gz", b"not gzip at all", "corrupt gzip"),
        ("empty.txt", b"", "empty"),
    ],
    ids=["binary", "not UTF-8", "cut gzip", "no gzip", "empty"],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    refused: Refused, tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    message = refused(f'data.text=["{file}"]')
    assert str(file) in message
    assert reason in message


def test_broken_files_among_good_ones_are_counted_and_set_aside(
    text: Path, recipe_file: Path, tmp_path: Path, leyden_cli: Callable[..., Any]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "binary.txt").write_bytes(b"abc\0def")
    (broken / "cut.txt.gz").write_bytes(gzip.compress(b"some text " * 1000)[:-20])
    (broken / "copy.txt").write_bytes((text / "00.txt").read_bytes())
    texts = f'data.text=["{text}", "{broken}"]'
    one_step = ("--set", "stage.0.steps=1", "--set", "stage.1.tokens=1")
    outcome = leyden_cli("run", recipe_file, "--dir", tmp_path / "run", "--set", texts, *one_step)
    assert outcome.code == 0, outcome.err
    assert "documents: 60," in outcome.err
    assert "1 duplicates dropped, 2 (1 binary, 1 corrupt gzip) set aside" in outcome.err


def test_a_vocabulary_larger_than_the_text_supports(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("a small text\n" * 5)
    message = refused(f'data.text=["{tmp_path / "small.txt"}"]')
    assert "The text supports a vocabulary of 27" in message
    assert "not of 500" in message
    assert "Ask for that many or fewer, or give more text" in message


def test_a_smaller_vocabulary_where_it_is_allowed(
    leyden_cli: Callable[..., Any], recipe_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "small.txt").write_text("a small text\n" * 5)
    (tmp_path / "other.txt").write_text("another text\n" * 5)
    changes = (f'data.text=["{tmp_path}"]', "tokenizer.allow_smaller=true", "stage.0.steps=1", "stage.1.tokens=1")
    settings = [argument for change in changes for argument in ("--set", change)]
    outcome = leyden_cli("run", recipe_file, "--dir", tmp_path / "run", *settings)
    assert outcome.code == 0, outcome.err
    assert "the text supports a vocabulary of 27" in outcome.err
    assert "not of 500" in outcome.err


def test_a_directory_that_is_a_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    assert refused() == f"error: {tmp_path / 'run'} is a file and cannot hold a run; give another --dir."
