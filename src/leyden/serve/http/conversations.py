"""Chats that outlive the server: what the model has read of them, each in a file of one directory.

A request names its conversation and still carries all of its messages. The name decides nothing about the answer: a
file that was saved under it before the start puts what the model had read back into the prefix cache, and behind the
answer, when the model has read that as well, the file is written anew.
"""

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from leyden.core.errors import UserError
from leyden.serve.http.loop import Loop

_PATIENCE_SECONDS = 60
_POLL_SECONDS = 0.1


def make_directory(path: Path) -> None:
    """See to it that conversations can be kept there.

    Raises:
        UserError: they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--conversations {path} cannot be made: {error.strerror}; give another directory.") from None
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"--conversations {path} cannot be written to; give another directory, or change its rights.")


class Conversations:
    """The conversations in a directory.

    Args:
        directory: as :func:`make_directory` made it.
        loop: of the engine that reads them.
    """

    def __init__(self, directory: Path, loop: Loop) -> None:
        self._directory = directory
        self._loop = loop
        self._opened: set[str] = set()
        self._turns: defaultdict[str, int] = defaultdict(int)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def open(self, name: str) -> None:
        """Let the engine know what it had read of this conversation, the first time that it is named since the start.

        Args:
            name: letters, digits, ``_`` and ``-`` alone.

        Raises:
            UserError: the file is torn, or another model's.
        """
        async with self._locks[name]:
            if name in self._opened:
                return
            path = self._path(name)
            if path.exists():
                await self._loop.between_steps(lambda engine: engine.load_conversation(path))
            self._opened.add(name)

    async def save(self, name: str, tokens: list[int], messages: Sequence[dict[str, str]]) -> None:
        """Keep what the model has read of ``tokens``, as soon as that is all of them, or it has other things to do.

        Of several turns of a conversation that wait for that, the last one is saved.

        Raises:
            UserError: the file cannot be written.
        """
        turn = self._turns[name] = self._turns[name] + 1
        await self._read(tokens)
        async with self._locks[name]:
            if turn < self._turns[name]:
                return
            path = self._path(name)
            try:
                await self._loop.between_steps(lambda engine: engine.save_conversation(path, tokens, messages))
            except OSError as error:
                raise UserError(f"{path} cannot be written: {error.strerror}.") from None
            self._opened.add(name)

    async def _read(self, tokens: list[int]) -> None:
        """Until the engine has read ``tokens``, which it was given to read ahead, or has dropped them for others.

        It does so when it has no requests: a server that always has some, or is about to end, saves what there is.
        """
        end = time.monotonic() + _PATIENCE_SECONDS
        while self._loop.ready and time.monotonic() < end:
            if not await self._loop.between_steps(lambda engine: engine.reads_ahead(tokens)):
                return
            await asyncio.sleep(_POLL_SECONDS)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.leyden"
