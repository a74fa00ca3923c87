"""Chats that outlive the server: what the model has read of them, each in a file of one directory.

A request names its conversation and still carries all of its messages. The name decides nothing about the answer: a
file that was saved under it before the start puts what the model had read back into the prefix cache, and after the
answer the file is written anew.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from leyden.core.errors import UserError
from leyden.serve.http.loop import Loop


class Conversations:
    """The conversations in a directory.

    Args:
        directory: is made when the first conversation is saved.
        loop: of the engine that reads them.
    """

    def __init__(self, directory: Path, loop: Loop) -> None:
        self._directory = directory
        self._loop = loop
        self._opened: set[str] = set()
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

    async def save(self, name: str, tokens: Sequence[int], messages: Sequence[dict[str, str]]) -> None:
        """Keep what the model has read of ``tokens``.

        Raises:
            UserError: the file cannot be written.
        """
        async with self._locks[name]:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{self._directory} cannot be made: {error.strerror}.") from None
            path = self._path(name)
            await self._loop.between_steps(lambda engine: engine.save_conversation(path, tokens, messages))
            self._opened.add(name)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.leyden"
