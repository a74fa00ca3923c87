"""A request's prompts, run by the engine together, and what comes of them as it comes."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Literal

from leyden.serve.http.errors import ApiError, unavailable
from leyden.serve.http.loop import Loop
from leyden.serve.http.metrics import Metrics, Watch
from leyden.serve.http.protocol.common import PromptTokensDetails, Usage
from leyden.serve.http.streaming import KEEP_ALIVE
from leyden.serve.request import Delta, FinishReason, QueueFullError, Request
from leyden.serve.sampling import Sampling
from leyden.serve.threads import carried

_RETRY_SECONDS = 0.05


class PromptGeneration:
    """Completions of several prompts; :meth:`start` gives them to the engine, and whoever did must close it.

    More prompts than the engine's queue has room for wait here, and go in as room appears.

    Args:
        loop: of the engine.
        metrics: what comes is measured there.
        name: the response's id; each prompt's request is named after it.
        prompts: token ids.
        sampling: of every prompt.
        salt: of every prompt's request.
        cache_completion: whether the engine reads what it wrote, see :class:`leyden.serve.request.Request`.

    Attributes:
        name, prompts: as given.
        first: when the first token came, on :func:`time.perf_counter`'s clock.
        ends: why completions ended, as they did.
    """

    def __init__(
        self,
        loop: Loop,
        metrics: Metrics,
        name: str,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        salt: str = "",
        cache_completion: bool = True,
    ) -> None:
        self.name, self.prompts = name, prompts
        self.first: float | None = None
        self.ends: list[FinishReason] = []
        self._loop = loop
        self._prepared: object = None
        self._waiting = deque(
            (place, Request(tokens, sampling, f"{name}-{place}", cache_completion=cache_completion, salt=salt))
            for place, tokens in enumerate(prompts)
        )
        self._running: dict[int, AsyncGenerator[Delta, None]] = {}
        self._watches = [Watch(metrics) for _ in prompts]
        self._read = [0] * len(prompts)
        self._drawn = 0
        self._cached: dict[int, int] = {}

    async def start(self) -> Literal[True]:
        """Submit the prompts; tells when that is done.

        Raises:
            QueueFullError: not even the first one could wait, or its grammar.
            UserError: one can never be answered; then none is.
        """
        try:
            sampling = self._waiting[0][1].sampling
            if sampling.grammar is not None:
                self._prepared = await self._loop.prepare(sampling)
            self._submit()
            return True
        except BaseException:
            await self.aclose()
            raise

    def usage(self) -> Usage:
        """What it cost so far; of a prompt, how much was cached is known at its end."""
        read = sum(map(len, self.prompts))
        cached = PromptTokensDetails(cached_tokens=sum(self._cached.values()))
        return Usage(
            prompt_tokens=read,
            completion_tokens=self._drawn,
            total_tokens=read + self._drawn,
            prompt_tokens_details=cached,
        )

    def progress(self) -> str:
        """What a client that waits is told: how much of the prompts was read, until all is."""
        read, whole = sum(self._read), sum(map(len, self.prompts))
        return f"{read} of {whole} tokens read" if read < whole else KEEP_ALIVE

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """What comes, with the place of its prompt.

        Raises:
            ApiError: the engine could not go on with one of them.
        """
        try:
            if len(self.prompts) == 1:
                async for delta in self._running[0]:
                    yield 0, self._seen(0, delta)
            else:
                async for place, delta in self._merged():
                    yield place, self._seen(place, delta)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """End what still runs."""
        self._waiting.clear()
        running, self._running = self._running, {}
        for deltas in running.values():
            await deltas.aclose()

    def _submit(self) -> None:
        while self._waiting:
            place, request = self._waiting[0]
            try:
                self._running[place] = self._loop.submit(request)
            except QueueFullError:
                if place == 0:
                    raise
                return
            self._waiting.popleft()

    def _seen(self, place: int, delta: Delta) -> Delta:
        if delta.finish_reason is not None:
            self.ends.append(delta.finish_reason)
        if delta.tokens and self.first is None:
            self.first = time.perf_counter()
        if delta.finish_reason == "error":
            raise ApiError(500, delta.error or "The engine could not go on.", code="generation_failed")
        if delta.finish_reason == "aborted":
            raise unavailable("The server is shutting down and ended this request.")
        self._watches[place].saw(delta)
        self._read[place] = max(self._read[place], delta.read_tokens)
        self._drawn += len(delta.tokens)
        if delta.usage is not None:
            self._cached[place] = delta.usage.cache.used
        return delta

    async def _merged(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """The prompts' deltas as they come, while further prompts go in."""
        arrived: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()
        pumps: dict[int, asyncio.Task[None]] = {}
        try:
            while self._waiting or self._running:
                self._submit()
                for place in self._running.keys() - pumps.keys():
                    pumps[place] = asyncio.create_task(_pump(place, self._running[place], arrived))
                if not self._running:  # others fill the queue
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                place, item = await arrived.get()
                while item is not None:  # until one has ended, and there may be room for another
                    if isinstance(item, Exception):
                        raise item
                    yield place, item
                    place, item = await arrived.get()
                del self._running[place]
        finally:
            for pump in pumps.values():
                pump.cancel()
            await asyncio.gather(*pumps.values(), return_exceptions=True)


async def _pump(
    place: int, deltas: AsyncGenerator[Delta, None], arrived: asyncio.Queue[tuple[int, Delta | Exception | None]]
) -> None:
    try:
        async for delta in deltas:
            arrived.put_nowait((place, delta))
        arrived.put_nowait((place, None))
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        arrived.put_nowait((place, carried(error)))
