"""Timing on the device, and the measured memory bandwidth and matrix rate that every floor is stated against."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from leyden.core.roofline import Speed

Call = Callable[[], object]


class Clock(Protocol):
    """Gives the median seconds of one call, out of several that do the same work on different inputs."""

    def __call__(self, calls: Sequence[Call], /) -> float: ...


class CudaClock:
    """CUDA events around each call, enqueued without waiting; the calls take turns so that no cache serves one.

    Args:
        budget: seconds of measurement to aim at, within the bounds on repeats.
        fewest, most: repeats.
    """

    def __init__(self, budget: float = 0.5, fewest: int = 3, most: int = 100) -> None:
        self._budget, self._fewest, self._most = budget, fewest, most

    def __call__(self, calls: Sequence[Call], /) -> float:
        for call in calls:  # compiles, and fills the allocator
            call()
        first = self._seconds(calls[:1])[0]
        repeats = min(self._most, max(self._fewest, len(calls), int(self._budget / max(first, 1e-6))))
        return statistics.median(self._seconds([calls[i % len(calls)] for i in range(repeats)]))

    def _seconds(self, calls: Sequence[Call]) -> list[float]:
        spans = []
        torch.cuda.synchronize()
        for call in calls:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            spans.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1000 for begin, end in spans]


class HostClock:
    """The host's time of the first two calls, each after a warm-up; for the CPU, where only code paths matter."""

    def __call__(self, calls: Sequence[Call], /) -> float:
        seconds = []
        for call in calls[:2]:
            call()
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)


def measure_speed(clock: Clock, device: torch.device, *, quick: bool) -> Speed:
    """Copy 2 GiB on the device, and multiply two bfloat16 matrices of 8192 by 8192 (tiny ones with ``quick``)."""
    size, side = (2**20, 64) if quick else (2**31, 8192)
    pairs = [tuple(torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2)) for _ in range(2)]
    copying = clock([lambda a=a, b=b: b.copy_(a) for a, b in pairs])
    del pairs
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=generator).to(torch.bfloat16) for _ in range(2))
    multiplying = clock([lambda: a @ b])
    return Speed(2 * size / copying, 2 * side**3 / multiplying)
