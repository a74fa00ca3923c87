"""One process a folder."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from leyden.core.errors import UserError
from leyden.core.lock import LOCK, folder_lock, lock_holder

_HOLDS = """
import sys, time, pathlib
from leyden.core.lock import folder_lock
with folder_lock(pathlib.Path(sys.argv[1]), "trains a run"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_told_who_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", _HOLDS, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"run is in use: process {holder.pid} on .* trains a run there since 2"):
            folder_lock(folder, "builds").__enter__()
        assert f"process {holder.pid}" in str(lock_holder(folder))
        holder.send_signal(signal.SIGKILL)
    assert (folder / LOCK).exists()
    assert lock_holder(folder) is None
    with folder_lock(folder, "builds"):  # a lock dies with its process
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    assert not (folder / LOCK).exists()


def test_a_folder_is_made_and_goes_again_where_nothing_came_of_it(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "a", "tests"):
        assert (tmp_path / "a").is_dir()
    assert not (tmp_path / "a").exists()
    with folder_lock(tmp_path / "b", "tests"):
        (tmp_path / "b" / "file").touch()
    assert [item.name for item in (tmp_path / "b").iterdir()] == ["file"]
    (tmp_path / "c").mkdir()
    with folder_lock(tmp_path / "c", "tests"):
        pass
    assert (tmp_path / "c").is_dir()


def test_a_lock_of_which_nothing_is_said_is_a_lock(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "tests"):
        (tmp_path / LOCK).write_text("[")
        with pytest.raises(UserError, match="another process holds its lock"):
            folder_lock(tmp_path, "tests").__enter__()


def test_where_no_folder_can_be_made_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be written"):
        folder_lock(tmp_path / "file" / "run", "tests").__enter__()


def test_of_many_one_holds_it_at_a_time(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(50):
            try:
                with folder_lock(tmp_path / "run", "tests"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    inside[0] -= 1
            except UserError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
