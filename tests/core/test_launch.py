"""What torchrun's environment says, and the line that starts as many processes again."""

import shlex
from pathlib import Path

import pytest

from leyden.core.launch import Launch, launched

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
