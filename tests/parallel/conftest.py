"""The ranks that all tests of this folder share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gloo_ranks import RankPool
from torch.utils._pytree import tree_leaves

from leyden.parallel import Plan

_PLANS = 3
"""Meshes that ranks make before they are started anew: each has a dozen groups, and each of gloo's has a thread that
wakes a hundred times a second. For the same reason ranks end with the tests of this folder."""


@pytest.fixture(scope="package")
def ranks() -> Iterator[Callable[..., list[Any]]]:
    """``ranks(world, function, *arguments)``: what each rank's call returned; see :mod:`gloo_ranks`."""
    pools: dict[int, RankPool] = {}
    plans: dict[int, set[Plan]] = {}

    def run(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        asked = {value for value in tree_leaves(arguments) if isinstance(value, Plan)}
        if world in pools and (not pools[world].alive or len(plans[world] | asked) > _PLANS):
            pools.pop(world).close()
        if world not in pools:
            pools[world], plans[world] = RankPool(world), set()
        plans[world] |= asked
        return pools[world].run(function, *arguments)

    yield run
    for pool in pools.values():
        pool.close()
