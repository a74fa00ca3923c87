"""The facts of the machine."""

import json
import subprocess

import torch

import leyden
from leyden.core.environment import git_commit
from leyden.evaluate import machine


def test_machine_is_plain_json_and_true():
    facts = json.loads(json.dumps(machine()))
    assert facts["torch"] == torch.__version__
    assert facts["leyden"] == leyden.__version__
    assert facts["memory_bytes"] > 2**28
    assert facts["cpu"]


def test_commit_of_a_checkout_and_of_none(tmp_path):
    assert git_commit(tmp_path) is None

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 12
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == commit + "+"
