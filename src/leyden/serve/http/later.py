"""What a server does behind an answer, when no client waits for it any more."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from leyden.core.errors import UserError
from leyden.core.log import logger


class Later:
    """Work of one event loop that goes on by itself; what goes wrong with it is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin with ``work``."""
        task = asyncio.create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, seconds: float) -> None:
        """Wait until all of it is done; what is not in so many seconds is given up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        for task in self._tasks:
            task.cancel()


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except UserError as error:
        logger(__name__).error("behind an answer: %s", error)
    except asyncio.CancelledError:
        raise
    except BaseException:
        logger(__name__).exception("behind an answer, the server made a mistake")
