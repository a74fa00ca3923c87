"""What a run reads back is what it wrote, or is named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def started(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, as it was before its evaluation."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "report")
    (tmp_path / "run" / "eval.jsonl").unlink()
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "held_out.jsonl"])
def test_a_changed_file_is_named(started: Path, name: str, leyden_cli: Callable[..., Any]) -> None:
    file = started / name
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    outcome = leyden_cli("run", started / "recipe.toml", "--dir", started)
    assert outcome.code == 2, outcome.err
    assert str(file) in outcome.err.splitlines()[-1]
    assert not (started / "eval.jsonl").exists()


@pytest.mark.slow
def test_what_was_made_again_is_gone_on_with(started: Path, finished: Path, leyden_cli: Callable[..., Any]) -> None:
    """As the message says: without its tokens a run reads the documents again."""
    (started / "held_out.jsonl").write_text("")
    outcome = leyden_cli("run", started / "recipe.toml", "--dir", started)
    assert "remove " + str(started / "data") in outcome.err
    shutil.rmtree(started / "data")
    outcome = leyden_cli("run", started / "recipe.toml", "--dir", started)
    assert outcome.code == 0, outcome.err
    for name in ("held_out.jsonl", "data/metadata.json"):
        assert (started / name).read_bytes() == (finished / name).read_bytes(), name
    # The lines that were written while it trained went with the file.
    measured = (started / "eval.jsonl").read_bytes()
    assert measured.startswith(b'{"task"') and (finished / "eval.jsonl").read_bytes().endswith(b"\n" + measured)
