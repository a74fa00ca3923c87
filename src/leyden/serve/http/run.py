"""From a loaded model to a running server."""

import faulthandler
import gc
import socket
import sys
from collections.abc import Sequence

from leyden.checkpoint.origin import NEVER_CONVERSED, never_conversed
from leyden.core.errors import UserError
from leyden.model import PAGE, Pools
from leyden.serve.conversation import fingerprint
from leyden.serve.engine import Engine
from leyden.serve.http.app import create_app
from leyden.serve.http.server import Server, url
from leyden.serve.http.service import ServedModel, Service
from leyden.serve.http.settings import ServerSettings
from leyden.serve.loop import EngineLoop

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
