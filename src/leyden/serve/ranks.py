"""An engine on several ranks, each with its part of the model (:mod:`leyden.parallel.serving`).

Every rank runs the same engine: it schedules, remembers and draws as the others do, since nothing in an engine depends
on anything but its requests, their order and the steps between them. So the first rank tells the others just those:
which requests came and which were aborted before each step, and what else was done between steps. States, keys and
values are each rank's own heads'.

Where one rank alone fails, the others wait for it until their collectives give up; torchrun ends them with it.
"""

import dataclasses
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from leyden.model import HybridLM, Pools
from leyden.parallel import RankGroup
from leyden.parallel.announce import Announcer
from leyden.serve.arrivals import Arrivals, Order
from leyden.serve.config import EngineConfig
from leyden.serve.engine import Engine
from leyden.serve.job import Generation
from leyden.serve.memory import plan_memory
from leyden.serve.request import Request
from leyden.serve.sampling import Sampling
from leyden.tokenizer import Tokenizer


class LeadingArrivals(Arrivals):
    """Those of the first rank, which tells the other ranks what its engine takes in and does.

    Args:
        announcer: to the other ranks.
    """

    def __init__(self, announcer: Announcer) -> None:
        super().__init__()
        self._announcer = announcer

    def take(self, order: Literal["step", "next step", "arrivals"]) -> tuple[list[Generation], list[str]]:
        """As :meth:`Arrivals.take`; the other ranks take in the same."""
        arrived, aborted = super().take(order)
        self.tell(order, [_told(first.request) for first in arrived], aborted)
        return arrived, aborted

    def tell(self, order: Order, *values: Any) -> None:
        """Let the other ranks do what this one does."""
        self._announcer.tell([order, *values])


def lead(
    model: HybridLM, tokenizer: Tokenizer | None, config: EngineConfig, announcer: Announcer, world: int
) -> Engine:
    """The engine of the first rank: it has the requests, and the others do what it does.

    Args:
        model: this rank's part, by :func:`leyden.parallel.serving.divide`.
        tokenizer: as of :class:`Engine`.
        config: memory is that of each rank; what is left open becomes what this rank has free, shared among ``world``.
        announcer: to the other ranks, which :func:`join`.
        world: how many ranks there are.
    """
    config = _divided_by_ranks(model, config, world)
    announcer.tell(config.model_dump())
    return Engine(model, tokenizer, config, arrivals=LeadingArrivals(announcer))


def dismiss(engine: Engine) -> None:
    """Let the ranks that :func:`follow` the first rank's engine return from that."""
    engine.arrivals.tell("stop")


def join(model: HybridLM, tokenizer: Tokenizer | None, announcer: Announcer) -> Engine:
    """The engine of another rank, with the settings of the first one's; arguments as of :func:`lead`."""
    return Engine(model, tokenizer, EngineConfig.parse(announcer.hear(), "the first rank"))


def follow(engine: Engine, announcer: Announcer) -> None:
    """Do with this rank's engine what the first rank does, and answer nobody, until that one dismisses it.

    Args:
        engine: of :func:`join`.
        announcer: from the first rank.
    """
    while True:
        order, *values = announcer.hear()
        if order == "stop":
            return
        if order == "read ahead":
            engine.read_ahead(*values)
            continue
        if order in ("update", "release", "acquire"):
            _between_steps(engine, order)
            continue
        requests, aborted = values
        for told in requests:
            engine.accept(_heard(told))
        for id in aborted:
            engine.abort(id)
        if order in ("step", "next step"):
            engine.step(entered=order == "step")
        else:
            engine.abort_now(())


def _between_steps(engine: Engine, order: str) -> None:
    """What the first rank does to its engine when no request runs any more, or when it ends those that do."""
    if order == "update":
        engine.update_weights(running="abort")
    elif order == "release":
        engine.release(running="abort")
    else:
        engine.acquire()


def _told(request: Request) -> dict[str, Any]:
    """A request as JSON, without what is this process's own."""
    fields = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    del fields["on_delta"], fields["inserts"]  # of which there are none on several ranks
    return {**fields, "tokens": list(request.tokens), "sampling": request.sampling.model_dump_json()}


def _heard(told: dict[str, Any]) -> Request:
    return Request(**{**told, "sampling": Sampling.model_validate_json(told["sampling"])})


@contextmanager
def engine_of(
    rank_group: RankGroup, model: HybridLM, tokenizer: Tokenizer | None, config: EngineConfig
) -> Iterator[Engine | None]:
    """The first rank's engine, with which the others go along until the end of the ``with``.

    Args:
        rank_group: of a plan by :func:`leyden.parallel.serving.serving_plan`, with more than one rank.
        model, tokenizer, config: as of :func:`lead`.

    Yields:
        On the other ranks None, when all is over. They leave signals to the first rank, which ends in order.
    """
    assert rank_group.mesh is not None and rank_group.mesh.store is not None, (
        "there are several ranks, and they have a store"
    )
    world = rank_group.mesh.plan.world
    announcer = Announcer(rank_group.mesh.store, world)
    if rank_group.rank > 0:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        with join(model, tokenizer, announcer) as engine:
            follow(engine, announcer)
        yield None
        return
    with lead(model, tokenizer, config, announcer, world) as engine:
        try:
            yield engine
        finally:
            dismiss(engine)


def _divided_by_ranks(model: HybridLM, config: EngineConfig, world: int) -> EngineConfig:
    """``config`` with memory in figures, so that all ranks have the same."""
    shape, device = model.ranks.held(model.config), model.norm.weight.device
    sizes, page = plan_memory(config, shape, model.dtype, device), Pools.bytes_of(shape, model.dtype)[1]
    share = world if device.type == "cpu" else 1  # of a memory that all ranks are in
    found = {
        "kv_gigabytes": (max(1, sizes.num_pages // share) + 0.5) * max(1, page) / 2**30,
        "cache_gigabytes": sizes.cache_bytes / share / 2**30,
        "swap_gigabytes": sizes.swap_bytes / world / 2**30,
    }
    given = config.model_dump()
    return EngineConfig.parse(
        {**given, "decoder": "torch"} | {name: size for name, size in found.items() if given[name] is None}, "engine"
    )
