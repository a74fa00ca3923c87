"""Work behind an answer: it is waited for at the end, and its faults are logged."""

import asyncio

import pytest

from leyden.core.errors import UserError
from leyden.serve.http.streaming import BackgroundTasks


def test_all_of_it_is_finished(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    background = BackgroundTasks()

    async def work(name: str, error: Exception | None = None, then: str = "") -> None:
        await asyncio.sleep(0.01)
        if then:
            background.do(work(then))
        if error is not None:
            raise error
        done.append(name)

    async def run() -> None:
        background.do(work("first", then="of the first"))
        background.do(work("wrong", UserError("the disk is full")))
        background.do(work("torn", KeyError("a defect")))
        await background.finish(10)
        await background.finish(10)
        background.do(asyncio.sleep(1000))
        await background.finish(0.01)

    asyncio.run(run())
    assert done == ["first", "of the first"]
    told = [record.getMessage() for record in caplog.records]
    assert told == ["behind an answer: the disk is full", "behind an answer, the server made a mistake"]
    assert caplog.records[1].exc_info is not None and caplog.records[0].exc_info is None
