"""``/metrics``: what the engine does and holds, and what clients wait for, as Prometheus reads it."""

import time
from collections import deque
from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leyden.serve.http.loop import Loop
from leyden.serve.request import Delta

_GAUGES = {
    "queued": ("leyden_requests_queued", "Sequences that wait for memory."),
    "running": ("leyden_requests_running", "Sequences that have memory."),
    "swapped": ("leyden_requests_swapped", "Sequences that had to make room, and wait in host memory."),
    "states_used": ("leyden_state_slots_used", "Slots of recurrent states that are taken."),
    "states_total": ("leyden_state_slots", "Slots of recurrent states."),
    "pages_used": ("leyden_kv_pages_used", "Pages of keys and values that are taken."),
    "pages_total": ("leyden_kv_pages", "Pages of keys and values."),
    "snapshot_bytes_used": ("leyden_snapshot_bytes_used", "Memory that snapshots of states take."),
    "snapshot_bytes_total": ("leyden_snapshot_bytes", "Memory that snapshots of states may take."),
    "weights_version": ("leyden_weights_version", "How often the weights became others since the server started."),
}
_COUNTERS = {
    "prompt_tokens": ("leyden_prompt_tokens", "Tokens of prompts that were admitted."),
    "prefill_tokens": ("leyden_prefill_tokens", "Tokens read in parts, those read for the cache alone included."),
    "cache_read_tokens": ("leyden_cache_read_tokens", "Tokens of completions read once more, for the cache alone."),
    "decode_tokens": ("leyden_generation_tokens", "Tokens drawn."),
    "cache_possible_tokens": ("leyden_cache_possible_tokens", "Tokens of prompts that an earlier text shared."),
    "cache_used_tokens": ("leyden_cache_used_tokens", "Tokens of prompts that were not read again."),
    "evictions": ("leyden_cache_evictions", "Entries of the prefix cache that made room."),
    "preemptions": ("leyden_preemptions", "Times that a sequence had to make room."),
    "refused": ("leyden_requests_refused", "Requests that found the queue full."),
    "steps": ("leyden_engine_steps", "Steps of the engine."),
    "draft_tokens_proposed": ("leyden_draft_tokens_proposed", "Tokens guessed."),
    "draft_tokens_accepted": ("leyden_draft_tokens_accepted", "Tokens guessed right."),
}
_LABELLED = {
    "cache_lost_tokens": ("leyden_cache_lost_tokens", "Shared tokens of prompts that were read again, and why."),
    "finished": ("leyden_completions_finished", "Completions by the reason of their end."),
}
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_RATE_SECONDS = 10


class Metrics:
    """One application's metrics, in a registry of their own.

    Args:
        loop: is asked for its statistics whenever somebody looks.
        model: the served model's name.
    """

    def __init__(self, loop: Loop, model: str) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(loop))
        info = Gauge("leyden_info", "The served model.", ("model", "version"), registry=self.registry)
        info.labels(model, version("leyden")).set(1)
        self._drawn: deque[tuple[float, int]] = deque()
        rate = Gauge(
            "leyden_generation_tokens_per_second",
            f"Tokens drawn per second, over the last {_RATE_SECONDS} seconds.",
            registry=self.registry,
        )
        rate.set_function(self._per_second)
        self.first = self._histogram("leyden_time_to_first_token_seconds", "From arrival to the first token.", _LONG)
        self.between = self._histogram("leyden_inter_token_latency_seconds", "Between tokens of a completion.", _SHORT)
        self.queued = self._histogram("leyden_queue_seconds", "From arrival to admission.", _LONG)
        self.whole = self._histogram("leyden_request_seconds", "From arrival to the end of a completion.", _LONG)
        self.responses = Counter("leyden_responses", "Responses by status.", ("status",), registry=self.registry)

    def drawn(self, num_tokens: int) -> None:
        """Tokens were drawn just now."""
        self._forget()
        self._drawn.append((time.monotonic(), num_tokens))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format (``CONTENT_TYPE_LATEST``)."""
        return generate_latest(self.registry)

    def _per_second(self) -> float:
        self._forget()
        return sum(num_tokens for _, num_tokens in self._drawn) / _RATE_SECONDS

    def _forget(self) -> None:
        before = time.monotonic() - _RATE_SECONDS
        while self._drawn and self._drawn[0][0] < before:
            self._drawn.popleft()

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, what, buckets=buckets, registry=self.registry)


class Watch:
    """Measures one prompt's completions as a client sees them, from now on."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = time.perf_counter()
        self._last: dict[int, float] = {}

    def saw(self, delta: Delta) -> None:
        """``delta`` came."""
        now = time.perf_counter()
        if delta.tokens:
            self._metrics.drawn(len(delta.tokens))
            last = self._last.get(delta.index)
            if last is not None:  # several tokens at once share the time
                for _ in delta.tokens:
                    self._metrics.between.observe((now - last) / len(delta.tokens))
            elif not self._last:
                self._metrics.first.observe(now - self._began)
            self._last[delta.index] = now
        if delta.usage is not None:
            self._metrics.whole.observe(now - self._began)
            if delta.index == 0:
                self._metrics.queued.observe(delta.usage.queued_seconds)


class CountResponses:
    """ASGI middleware that counts responses by status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._responses = metrics.responses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and look at its response's first message."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._responses.labels(message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted)


class _EngineCollector(Collector):
    """The engine's own numbers, as they are when somebody looks."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        """All families."""
        statistics = self._loop.statistics
        for field, (name, what) in _GAUGES.items():
            yield GaugeMetricFamily(name, what, value=getattr(statistics, field))
        for field, (name, what) in _COUNTERS.items():
            yield CounterMetricFamily(name, what, value=getattr(statistics, field))
        for field, (name, what) in _LABELLED.items():
            family = CounterMetricFamily(name, what, labels=("reason",))
            for reason, value in dict(getattr(statistics, field)).items():  # a copy: the engine goes on counting
                family.add_metric((reason,), value)
            yield family
