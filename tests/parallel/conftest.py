"""The ranks that all tests of this folder share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gloo_ranks import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[..., list[Any]]]:
    """``ranks(world, function, *arguments)``: what each rank's call returned; see :mod:`gloo_ranks`."""
    pools: dict[int, RankPool] = {}

    def run(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if world not in pools or not pools[world].alive:
            pools[world] = RankPool(world)
        return pools[world].run(function, *arguments)

    yield run
    for pool in pools.values():
        if pool.alive:
            pool.close()
