"""A running server: uvicorn around the application, the socket, the signals, and an end in which requests finish."""

import asyncio
import faulthandler
import gc
import math
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from leyden.checkpoint.origin import NEVER_CONVERSED, never_conversed
from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.model import PAGE, Pools
from leyden.serve.conversation import fingerprint
from leyden.serve.engine import Engine
from leyden.serve.http.app import create_app
from leyden.serve.http.connection import connections
from leyden.serve.http.service import ServedModel, Service
from leyden.serve.http.settings import ServerSettings
from leyden.serve.loop import EngineLoop
from leyden.serve.threads import Threads

_BACKLOG = 1024
_CANCEL_SECONDS = 2
_LATER_SECONDS = 5
"""For what is done behind the last answers, such as keeping a conversation."""
_OTHER_FILES = 256


def listen(settings: ServerSettings) -> socket.socket:
    """The bound socket, before anything expensive is done; its address has the port that was free.

    The process may then hold as many open files as connections are allowed, if the system lets it.

    Raises:
        UserError: the address cannot be had.
    """
    _allow_files(settings.max_connections + _OTHER_FILES)
    if settings.uds is not None:
        return _listen_on_path(settings.uds)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise UserError(
            f"Cannot listen on {settings.host}, port {settings.port}: {error.strerror}. Give another --host or --port."
        ) from None
    return bound


def _listen_on_path(path: Path) -> socket.socket:
    """A Unix socket, with the permissions that the umask leaves; one that a dead server left there is replaced."""
    try:
        if path.is_socket() and _is_dead(path):
            path.unlink()
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound.bind(str(path))
    except OSError as error:
        raise UserError(f"Cannot listen on {path}: {error.strerror or error}. Give another --uds.") from None
    return bound


def _is_dead(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def url(bound: socket.socket) -> str:
    """Where clients find it."""
    if bound.family == socket.AF_UNIX:
        return f"unix:{bound.getsockname()}"
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server, which ends well on SIGTERM and Ctrl-C: no new connections, running requests finish, exit 0.

    What still runs after ``drain_seconds`` ends with an error that says so; a second signal ends everything at once.

    Args:
        app: of ``service``.
        service: whose loop runs already.
        greeting: is said once clients may come.
        last_resort: is called with ``drain_seconds`` when the end begins.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        greeting: str = "",
        last_resort: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        settings = service.settings
        config = uvicorn.Config(
            app,
            http=connections(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=math.ceil(settings.idle_seconds),
            timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + _CANCEL_SECONDS,
        )
        super().__init__(config)
        self._service, self._greeting, self._last_resort = service, greeting, last_resort

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; uvicorn would raise the signal anew when all is done, and so not exit with 0."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and only then say so."""
        await super().startup(sockets)
        if self._greeting:
            logger(__name__).info("%s", self._greeting)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what runs finish, while nothing new comes in."""
        loop, settings = self._service.loop, self._service.settings
        self._last_resort(settings.drain_seconds)
        drained = asyncio.create_task(Threads("drain", 1).run(loop.drain, settings.drain_seconds))
        await super().shutdown(sockets)
        if self.force_exit:
            loop.drain(0)
        await drained
        if not self.force_exit:
            await self._service.background.finish(_LATER_SECONDS)


_GIGABYTE = 1 << 30
_END_SECONDS = 10
"""After ``drain_seconds``, for what is done behind the last answers."""
_SWITCH_SECONDS = 0.001
"""How long a thread may have the interpreter while others wait; by default it is 5 times as long, and a stream would
wait so long several times a token while a large prompt is prepared."""


def run_server(
    bound: socket.socket, engine: Engine, *, root: str, names: Sequence[str], settings: ServerSettings
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        bound: from :func:`leyden.serve.http.listen`.
        engine: of the model to serve.
        root: where the model came from.
        names: that clients ask for it by.
        settings: of the server.

    Raises:
        UserError: there is no tokenizer.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    model, tokenizer = engine.model, engine.tokenizer
    if tokenizer is None:
        raise UserError(f"{root} has no tokenizer, and a server needs one; add its tokenizer.json.")
    loop = EngineLoop(engine)
    loop.start()
    served = ServedModel(
        tuple(names),
        tokenizer,
        context_tokens=engine.max_positions,
        vocab_size=model.config.vocab_size,
        root=names[0],
        weights=fingerprint(model),
        notice=NEVER_CONVERSED if never_conversed(root) else None,
        adapters=() if model.adapters is None else model.adapters.names,
    )
    service = Service(loop, served, settings)
    greeting = f"{names[0]} is served at {url(bound)} ({_memory(engine)}); Ctrl-C ends it."
    server = Server(create_app(service), service, greeting, last_resort=_end_in_any_case)
    gc.collect()
    gc.freeze()  # what is there now stays to the end: no collection need look at it
    try:
        server.run(sockets=[bound])
    finally:
        gc.unfreeze()
        if settings.uds is not None:
            settings.uds.unlink(missing_ok=True)


def _end_in_any_case(drain_seconds: float) -> None:
    """End the process some time after it should have ended, whatever a thread does then, and tell what that is."""
    faulthandler.dump_traceback_later(drain_seconds + _END_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)


def _memory(engine: Engine) -> str:
    """What the engine holds, in one clause."""
    weights = sum(each.nbytes for each in (*engine.model.parameters(), *engine.model.buffers()))
    held = engine.statistics
    shape = engine.model.ranks.held(engine.model.config)
    _, page_bytes = Pools.bytes_of(shape, engine.model.dtype)
    return (
        f"weights {weights / _GIGABYTE:.2f} GiB; {held.states_total} sequences at once; keys and values of "
        f"{held.pages_total * PAGE:,} tokens, {held.pages_total * page_bytes / _GIGABYTE:.2f} GiB; snapshots "
        f"{held.snapshot_bytes_total / _GIGABYTE:.2f} GiB; a context of {engine.max_positions:,} tokens"
    )
