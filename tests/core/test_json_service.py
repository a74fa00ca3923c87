"""Requests side by side: every answer has its index, and after an error nothing more is asked."""

import threading

import pytest

from leyden.core.json_service import in_parallel


def test_every_answer_has_the_index_of_its_item() -> None:
    stop = threading.Event()
    stop.set()  # of the call before
    answers = dict(in_parallel(lambda item: (item * item, stop.is_set()), range(50), 7, stop))
    assert answers == {index: (index * index, False) for index in range(50)}
    assert stop.is_set()


def test_after_an_error_nothing_that_has_not_begun_is_asked() -> None:
    asked, stop = [], threading.Event()

    def ask(item: int) -> int:
        asked.append(item)
        if item == 2:
            raise ValueError("the third")
        if item > 2:
            assert stop.wait(10)  # it was begun before the error was seen
        return item

    with pytest.raises(ValueError, match="the third"):
        list(in_parallel(ask, range(10_000), 1, stop))
    assert stop.is_set()
    assert asked in ([0, 1, 2], [0, 1, 2, 3])


def test_who_stops_listening_stops_the_asking() -> None:
    asked, stop, more = [], threading.Event(), threading.Event()

    def ask(item: int) -> int:
        asked.append(item)
        if item:
            more.wait(10)
        return item

    answers = in_parallel(ask, range(100), 2, stop)
    assert next(answers) == (0, 0)
    threading.Timer(0.05, more.set).start()  # what is under way is waited for
    answers.close()
    assert stop.is_set()
    assert len(asked) < 100
