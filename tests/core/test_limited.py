"""Calls in a child process, bounded in time and memory."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from leyden.core.errors import UserError
from leyden.core.limited import LimitedProcess, LimitReached

_WORK = """
import os, signal, sys, time
from leyden.core.errors import UserError

class Local(Exception):
    def __init__(self, one, two):
        super().__init__(one + two)

def make(greeting):
    kept = []
    def work(kind, *more):
        if kind == "greet":
            print("a library that prints")
            return greeting, os.getpid(), *more
        if kind == "spin":
            while True: pass
        if kind == "sleep":
            time.sleep(60)
        if kind == "take":
            return len(bytes(more[0]))
        if kind == "keep":
            kept.append(bytes(more[0]))
            return len(kept)
        if kind == "mistake":
            raise UserError("a mistake")
        if kind == "panic":
            raise type("PanicException", (BaseException,), {})("a panic")
        if kind == "local":
            raise Local("odd ", "words")
        if kind == "exit":
            sys.exit(3)
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        return lambda: None
    return work
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LimitedProcess]:
    file = tmp_path_factory.mktemp("limited") / "work.py"
    file.write_text(_WORK)
    process = LimitedProcess(file, ("hello",), seconds=0.3, memory_bytes=1 << 26)
    yield process
    process.close()


def test_calls_have_answers_and_share_a_child(process: LimitedProcess) -> None:
    first, second = process.call("greet", 1), process.call("greet", b"2")
    assert (first[0], first[2], second[2]) == ("hello", 1, b"2")
    assert first[1] == second[1] != os.getpid()


@pytest.mark.parametrize(
    ("arguments", "reason", "words"),
    [
        (("spin",), "time", "more than 0.3 seconds"),
        (("take", 1 << 27), "memory", "more than 64 MiB"),
        (("crash",), "crash", "SIGSEGV"),
    ],
)
def test_what_takes_too_much_is_told_and_the_next_call_is_well(
    process: LimitedProcess, arguments: tuple[object, ...], reason: str, words: str
) -> None:
    with pytest.raises(LimitReached, match=words) as raised:
        process.call(*arguments)
    assert raised.value.reason == reason
    assert process.call("greet")[0] == "hello"


def test_a_call_that_sleeps_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work.py").write_text(_WORK)
    process = LimitedProcess(tmp_path / "work.py", ("",), seconds=-0.99, memory_bytes=1 << 26)  # 0.1 s on the wall
    monkeypatch.setattr(process, "_begin", (*process._begin[:2], 1, 1 << 26))
    with pytest.raises(LimitReached):
        process.call("sleep")


def test_what_earlier_calls_left_is_not_held_against_the_next(process: LimitedProcess) -> None:
    for _ in range(5):
        assert process.call("keep", 1 << 25) >= 1


def test_exceptions_come_back_as_they_are(process: LimitedProcess) -> None:
    with pytest.raises(UserError, match="a mistake"):
        process.call("mistake")
    for kind, words in (
        ("panic", "PanicException: a panic"),
        ("local", "Local: odd words"),
        ("lambda", "pickle"),
        ("exit", "SystemExit: 3"),
    ):
        with pytest.raises(RuntimeError, match=words):
            process.call(kind)


def test_a_child_that_cannot_be_set_up_says_why(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text("import no_such_module_at_all")
    process = LimitedProcess(tmp_path / "work.py", seconds=1, memory_bytes=1 << 26)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
            process.call()


_FORKS = """
import os, pathlib, sys
from leyden.core.limited import LimitedProcess
process = LimitedProcess(pathlib.Path(sys.argv[1]), ("hello",), seconds=5, memory_bytes=1 << 26)
mine = process.call("greet")[1]
if os.fork() == 0:
    assert process.call("greet")[1] != mine
    process.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert process.call("greet")[1] == mine
"""


def test_a_process_that_was_forked_has_a_child_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(_WORK)
    subprocess.run([sys.executable, "-c", _FORKS, tmp_path / "work.py"], check=True, timeout=60)


def test_threads_get_their_own_answers(process: LimitedProcess) -> None:
    answers: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda n=n: answers.__setitem__(n, process.call("greet", n)[2])) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: n for n in range(8)}
