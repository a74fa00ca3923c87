"""What torchrun's environment says, and the line that starts as many processes again."""

import json
import shlex
from pathlib import Path

import pytest

from leyden.core import launch as launch_module
from leyden.core.launch import Launch, launched, tell_launcher

TORCHRUN = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}


def test_one_process_where_nobody_launched_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "3")  # of something else
    assert launched() == Launch(rank=0, world=1)


def test_torchruns_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert launched() == Launch(rank=9, world=16, local_rank=1, local_world=8, restart=0)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert launched().restart == 2


def test_the_line_that_starts_as_many_again() -> None:
    assert Launch().command("run", "x.toml") == "leyden run x.toml"
    assert Launch(world=4, local_world=4).command("run", "x.toml") == "torchrun --nproc-per-node 4 -m leyden run x.toml"
    nodes = Launch(world=16, local_world=8).command("run", "x.toml")
    assert nodes == "torchrun --nnodes 2 --nproc-per-node 8 -m leyden run x.toml"


def test_the_line_can_be_pasted() -> None:
    given = ("run", Path("/data/q s é/recipe's.toml"), "--set", 'data.text=["a b.txt"]')
    for launch, before in ((Launch(), 1), (Launch(world=4, local_world=4), 5)):
        assert shlex.split(launch.command(*given))[before:] == [str(word) for word in given]


def test_the_reason_is_handed_to_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its own error handler writes it. Of a reason that all have, all but the first of a machine wait before."""
    waited = list[float]()
    monkeypatch.setattr(launch_module.time, "sleep", waited.append)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    for alone, local_rank in ((True, "1"), (False, "0"), (False, "1")):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        tell_launcher("error: no\nsuch plan", alone=alone)
        message = json.loads((tmp_path / "error.json").read_text())["message"]
        assert message["extraInfo"]["py_callstack"] == "error: no\nsuch plan"
        assert int(message["extraInfo"]["timestamp"]) > 1e9
        (tmp_path / "error.json").unlink()
    assert waited == [30.0]
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    tell_launcher("error", alone=False)
    assert not (tmp_path / "error.json").exists()
    assert len(waited) == 1
