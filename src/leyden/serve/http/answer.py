"""From the engine's deltas to a response: whole, or as server-sent events; large ones are written in parts."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, TypeAdapter

from leyden.serve.http.generation import PromptGeneration
from leyden.serve.http.protocol.common import StreamOptions, Usage
from leyden.serve.http.settings import ServerSettings
from leyden.serve.http.streaming import DONE, EventStream, event, while_connected
from leyden.serve.request import Delta
from leyden.serve.threads import Threads


class _Indexed(Protocol):
    index: int


Piece = TypeVar("Piece", bound=_Indexed)


class GrowingResponse(ABC, Generic[Piece]):
    """A response that grows by pieces of its choices.

    Args:
        generation: what the engine makes of the request's prompts.
        num_choices: of all prompts together.
        threads: in which large pieces are written.
        large: whether pieces tell of the whole prompt, token by token.
    """

    def __init__(self, generation: PromptGeneration, num_choices: int, threads: Threads, *, large: bool) -> None:
        self._generation = generation
        self._num_choices = num_choices
        self._threads = threads
        self._large = large

    @abstractmethod
    def write(self, place: int, delta: Delta) -> Piece | None:
        """The piece that ``delta``, of the prompt in this place, makes; None where it tells nothing."""

    @abstractmethod
    def chunk(self, pieces: Sequence[Piece], **usage: Usage | None) -> BaseModel:
        """An event that tells of ``pieces``."""

    @abstractmethod
    def complete(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> BaseModel:
        """The whole response, of all pieces of every choice."""

    @property
    def finished(self) -> bool:
        """Whether nothing that may still come would be told."""
        return False

    def end(self) -> None:
        """Called once everything has been said."""

    def usage(self) -> Usage:
        """What it cost so far."""
        return self._generation.usage()

    async def respond(self, request: Request, stream: bool | None, options: StreamOptions | None) -> Response:
        """Let the engine begin, and respond; when the client goes, so does the engine's work.

        Raises:
            QueueFullError, UserError: from the engine, before anything has been sent.
        """
        settings: ServerSettings = request.app.state.service.settings
        request.state.generation = self._generation
        if not await while_connected(request.receive, self._generation.start()):
            return Response()  # to nobody: the client went while its grammar was compiled
        if stream:
            events = self._events(options or StreamOptions())
            generation = self._generation
            return EventStream(events, close=generation.aclose, settings=settings, silence=generation.progress)
        try:
            whole = await while_connected(request.receive, self._whole())
        finally:
            await self._generation.aclose()
        return Response(whole, media_type="application/json")

    async def _whole(self) -> str:
        pieces: list[list[Piece]] = [[] for _ in range(self._num_choices)]
        async for piece in self._pieces():
            pieces[piece.index].append(piece)
        self.end()
        return await self._threads.run(lambda: json_text(self.complete(pieces, self.usage())))

    async def _events(self, options: StreamOptions) -> AsyncGenerator[bytes, None]:
        async for piece in self._pieces():
            told = self.usage() if options.continuous_usage_stats else None
            usage = {"usage": told} if options.include_usage else {}
            yield event(await self._written(self.chunk([piece], **usage)))
        if options.include_usage:
            yield event(await self._written(self.chunk([], usage=self.usage())))
        self.end()
        yield DONE

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        deltas = self._generation.deltas()
        try:
            async for place, delta in deltas:
                piece = await self._threads.run(self.write, place, delta) if self._large else self.write(place, delta)
                if piece is not None:
                    yield piece
                if self.finished:
                    return
        finally:
            await deltas.aclose()

    async def _written(self, chunk: BaseModel) -> str:
        """As JSON; fields that were not set are left out, those that are null were set."""
        if self._large:
            return await self._threads.run(json_text, chunk)
        return chunk.model_dump_json(exclude_unset=True)


_ANYTHING = TypeAdapter(Any)
_AT_ONCE = 256
"""Items of a list; some 0.1 to 3 ms."""


def json_text(value: Any) -> str:
    """``value``, a response or a part of one, as ``model_dump_json(exclude_unset=True)`` would write it."""
    if isinstance(value, BaseModel):
        fields = ((name, getattr(value, name)) for name in type(value).model_fields if name in value.model_fields_set)
        return "{" + ",".join(f'"{name}":{json_text(each)}' for name, each in fields) + "}"
    if not isinstance(value, list):
        return _ANYTHING.dump_json(value, exclude_unset=True).decode()
    if value and isinstance(value[0], BaseModel):
        return "[" + ",".join(map(json_text, value)) + "]"
    parts = (value[start : start + _AT_ONCE] for start in range(0, len(value), _AT_ONCE))
    return "[" + ",".join(_ANYTHING.dump_json(part, exclude_unset=True).decode()[1:-1] for part in parts) + "]"
