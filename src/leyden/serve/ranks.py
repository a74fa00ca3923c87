"""An engine on several ranks, which have a part of the model each (:mod:`leyden.parallel.serving`).

Every rank runs the same engine: it schedules, remembers and draws as the others do, since nothing in an engine depends
on anything but its requests, their order and the steps between them. So the first rank tells the others just those:
which requests came and which were aborted before each step. States, keys and values are each rank's own heads'.

Where one rank alone fails, the others wait for it until their collectives give up; torchrun ends them with it.
"""

import dataclasses
import secrets
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from leyden.core.errors import UserError
from leyden.model import HybridLM, Pools
from leyden.parallel import Team
from leyden.parallel.announce import Announcer
from leyden.serve.config import EngineConfig
from leyden.serve.conversation import Conversation
from leyden.serve.engine import Engine
from leyden.serve.memory import plan_memory
from leyden.serve.request import Request
from leyden.serve.sampling import Sampling
from leyden.tokenizer import Tokenizer

Order = Literal["step", "take in", "read ahead", "stop"]
"""What a rank is told to do. Behind the first two come the requests and the ids that were aborted, behind the third the
tokens."""


class LeadingEngine(Engine):
    """The first rank's: it has the requests, and the others do what it does.

    Args:
        model: this rank's part, by :func:`leyden.parallel.serving.divide`.
        tokenizer: as of :class:`Engine`.
        config: memory is that of each rank; what is left open becomes what this rank has free, shared among ``world``.
        announcer: to the other ranks.
        world: how many ranks there are.
    """

    def __init__(
        self, model: HybridLM, tokenizer: Tokenizer | None, config: EngineConfig, announcer: Announcer, world: int
    ) -> None:
        config = _settled(model, config, world)
        self._announcer, self._together, self._stepping = announcer, threading.RLock(), False
        announcer.tell(config.model_dump())
        super().__init__(model, tokenizer, config)

    def add(self, request: Request) -> None:
        """As :meth:`Engine.add`; random numbers without a seed get one, which all ranks draw from."""
        if request.sampling.seed is None:
            request.sampling = request.sampling.model_copy(update={"seed": secrets.randbits(62)})
        with self._together:
            super().add(request)

    def abort(self, id: str) -> None:
        """As :meth:`Engine.abort`."""
        with self._together:
            super().abort(id)

    def step(self) -> list[Any]:
        """As :meth:`Engine.step`, on all ranks."""
        self._stepping = True
        self._announcer.tell("step")
        try:
            return super().step()
        finally:
            self._stepping = False

    def read_ahead(self, tokens: Sequence[int], salt: str = "") -> None:
        """As :meth:`Engine.read_ahead`."""
        self._announcer.tell("read ahead")
        self._announcer.tell([list(tokens), salt])
        super().read_ahead(tokens, salt)

    def save_conversation(self, path: Path, tokens: Sequence[int], *_: Any, **__: Any) -> int:
        """Refused: a file would hold this rank's heads alone."""
        raise UserError(f"{path} is not written: several ranks hold a part of a conversation each; serve with one.")

    def load_conversation(self, path: Path) -> Conversation:
        """Refused: a file holds the heads of all ranks."""
        raise UserError(f"{path} is not read: several ranks hold a part of a conversation each; serve with one.")

    def stop(self) -> None:
        """Let the other ranks end."""
        self._announcer.tell("stop")

    def _take_in(self) -> None:
        if not self._stepping:
            self._announcer.tell("take in")
        with self._together:  # what comes meanwhile is for the next time
            self._announcer.tell([[_told(first.request) for first in self._arrivals], list(self._aborts)])
            super()._take_in()


class FollowingEngine(Engine):
    """Another rank's: it does what the first one does, and answers nobody.

    Args:
        model, tokenizer: as of :class:`LeadingEngine`.
        announcer: from the first rank.
    """

    def __init__(self, model: HybridLM, tokenizer: Tokenizer | None, announcer: Announcer) -> None:
        self._announcer = announcer
        super().__init__(model, tokenizer, EngineConfig.parse(announcer.hear(), "the first rank"))

    def follow(self) -> None:
        """Until the first rank stops."""
        while True:
            order: Order = self._announcer.hear()
            if order == "stop":
                return
            if order == "step":
                self.step()
            elif order == "read ahead":
                self.read_ahead(*self._announcer.hear())
            else:
                self._take_in()

    def _take_in(self) -> None:
        requests, aborts = self._announcer.hear()
        for told in requests:
            super().add(_heard(told))
        self._aborts += aborts
        super()._take_in()

    @property
    def has_room(self) -> bool:
        """The first rank has found room for what it tells."""
        return True


def _told(request: Request) -> dict[str, Any]:
    """A request as JSON."""
    fields = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    return {**fields, "tokens": list(request.tokens), "sampling": request.sampling.model_dump_json()}


def _heard(told: dict[str, Any]) -> Request:
    return Request(**{**told, "sampling": Sampling.model_validate_json(told["sampling"])})


@contextmanager
def engine_of(
    team: Team, model: HybridLM, tokenizer: Tokenizer | None, config: EngineConfig
) -> Iterator[LeadingEngine | None]:
    """The first rank's engine, with which the others go along until the end of the ``with``.

    Args:
        team: of a plan by :func:`leyden.parallel.serving.serving_plan`, with more than one rank.
        model, tokenizer, config: as of :class:`LeadingEngine`.

    Yields:
        On the other ranks None, when all is over. They leave signals to the first rank, which ends in order.
    """
    assert team.mesh is not None and team.mesh.store is not None, "there are several ranks, and they have a store"
    world = team.mesh.plan.world
    announcer = Announcer(team.mesh.store, world)
    if team.rank > 0:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        with FollowingEngine(model, tokenizer, announcer) as engine:
            engine.follow()
        yield None
        return
    with LeadingEngine(model, tokenizer, config, announcer, world) as engine:
        try:
            yield engine
        finally:
            engine.stop()


def _settled(model: HybridLM, config: EngineConfig, world: int) -> EngineConfig:
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
