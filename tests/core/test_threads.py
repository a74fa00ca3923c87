"""Few threads are a user's error, said before a library ends the process."""

import threading

import pytest

from leyden.core.errors import UserError
from leyden.core.threads import require_threads


def test_threads_that_are_there_are_given_back() -> None:
    before = threading.active_count()
    require_threads(8, "a test")
    assert threading.active_count() == before


def test_too_few_are_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    before, start = threading.active_count(), threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if threading.active_count() >= before + 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(UserError, match="a test needs 8 more threads, and this process may start 3: raise the limit"):
        require_threads(8, "a test")
    assert threading.active_count() == before
