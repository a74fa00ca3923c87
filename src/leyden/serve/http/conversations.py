"""Chats that survive a restart: the state of each in a file, in a folder for each API key.

A request names its conversation and still carries all of its messages. The name decides nothing about the answer: a
file that was saved under it before the start puts what the model had read back into the prefix cache, and behind the
answer, when the model has read that as well, the file is written anew.
"""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.serve.http.loop import Loop
from leyden.serve.threads import Threads

_PATIENCE_SECONDS = 60
_POLL_SECONDS = 0.1
_MOST_OPENED = 4096
"""Conversations of which it is remembered that they were opened; one more, and the oldest is opened again."""
_NOBODY = "no-key"
"""The folder of a server without keys."""


def make_directory(path: Path) -> None:
    """See to it that conversations can be kept there.

    Raises:
        UserError: they cannot.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--conversations {path} cannot be made: {error.strerror}; give another directory.") from None
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"--conversations {path} cannot be written to; give another directory, or change its rights.")


@dataclass
class _Turns:
    """One conversation while requests work on it.

    Attributes:
        users: how many there are.
        last: number of its last turn.
    """

    users: int = 0
    last: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Conversations:
    """The conversations in a directory.

    Args:
        directory: as :func:`make_directory` made it.
        loop: of the engine that reads them.
        bytes_each: room for the files of one owner; the oldest make room.
    """

    def __init__(self, directory: Path, loop: Loop, bytes_each: int) -> None:
        self._directory = directory
        self._loop = loop
        self._bytes_each = bytes_each
        self._threads = Threads("conversations", 1)
        self._opened: OrderedDict[Path, None] = OrderedDict()
        self._turns: dict[Path, _Turns] = {}

    async def open(self, owner: str, name: str, salt: str) -> None:
        """Let the engine know what it had read of this conversation, the first time that it is named since the start.

        Args:
            owner: stands for the API key, in letters and digits; empty where there are none.
            name: letters, digits, ``_`` and ``-`` alone.
            salt: of its requests, see :class:`leyden.serve.request.Request`.

        Raises:
            UserError: the file is torn, or another model's.
        """
        path = self._path(owner, name)
        async with self._at(path) as turns, turns.lock:
            if path in self._opened:
                return
            if await self._threads.run(os.path.lexists, path):
                engine = await self._loop.between_steps(lambda engine: engine)
                contents = await self._threads.run(engine.read_conversation, path)
                await self._loop.between_steps(lambda engine: engine.restore_conversation(path, contents, salt))
            self._remember(path)

    async def save(
        self, owner: str, name: str, salt: str, tokens: list[int], messages: Sequence[dict[str, str]]
    ) -> None:
        """Keep what the model has read of ``tokens``, as soon as that is all of them, or it has other things to do.

        Of several turns of a conversation that wait for that, the last one is saved.

        Raises:
            UserError: the file cannot be written.
        """
        path = self._path(owner, name)
        async with self._at(path) as turns:
            turns.last = turn = turns.last + 1
            await self._read(tokens, salt)
            async with turns.lock:
                if turn < turns.last:
                    return
                await self._threads.run(_make_private, path.parent)
                await self._loop.between_steps(
                    lambda engine: engine.save_conversation(path, tokens, messages, salt=salt, mode=0o600)
                )
                await self._threads.run(self._make_room, path)
                self._remember(path)

    @asynccontextmanager
    async def _at(self, path: Path) -> AsyncIterator[_Turns]:
        """What those that work on one conversation share; it is gone with the last of them."""
        turns = self._turns.setdefault(path, _Turns())
        turns.users += 1
        try:
            yield turns
        finally:
            turns.users -= 1
            if not turns.users:
                del self._turns[path]

    def _remember(self, path: Path) -> None:
        self._opened[path] = None
        self._opened.move_to_end(path)
        while len(self._opened) > _MOST_OPENED:
            self._opened.popitem(last=False)

    async def _read(self, tokens: list[int], salt: str) -> None:
        """Until the engine has read ``tokens``, which it was given to read ahead, or has dropped them for others.

        It does so when it has no requests: a server that always has some, or is about to end, saves what there is.
        """
        end = time.monotonic() + _PATIENCE_SECONDS
        while self._loop.ready and time.monotonic() < end:
            if not await self._loop.between_steps(lambda engine: engine.reads_ahead(tokens, salt)):
                return
            await asyncio.sleep(_POLL_SECONDS)

    def _make_room(self, path: Path) -> None:
        """Remove the owner's oldest files until they fit; the last of them is the one that was just written."""
        kept = sorted(
            (
                (status.st_mtime_ns, status.st_size, each)
                for each in path.parent.glob("*.leyden")
                for status in [each.stat()]
            ),
            key=lambda found: (found[2] == path, found[0]),
        )
        whole = sum(size for _, size, _ in kept)
        for _, size, oldest in kept:
            if whole <= self._bytes_each:
                return
            oldest.unlink(missing_ok=True)
            whole -= size
            if oldest == path:
                logger(__name__).warning(
                    "A conversation of %d bytes is not kept: a key has room for %d (--conversations-gigabytes).",
                    size,
                    self._bytes_each,
                )

    def _path(self, owner: str, name: str) -> Path:
        return self._directory / (owner or _NOBODY) / f"{name}.leyden"


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}.") from None
