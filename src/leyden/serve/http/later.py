"""What a server does behind an answer, when no client waits for it any more."""

import asyncio
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

    async def finish(self) -> None:
        """Wait until all of it is done."""
        while self._tasks:
            await asyncio.wait(self._tasks)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except UserError as error:
        logger(__name__).error("behind an answer: %s", error)
    except asyncio.CancelledError:
        raise
    except BaseException:
        logger(__name__).exception("behind an answer, the server made a mistake")
