"""Whether this process may start threads: where it may not, libraries in C++ abort it and those in Rust panic."""

import threading

from leyden.core.errors import UserError


def require_threads(count: int, doing: str) -> None:
    """Start ``count`` threads at once, and end them.

    Args:
        count: how many the libraries that follow take at least.
        doing: what needs them, for the message: ``"a data build"``.

    Raises:
        UserError: a limit of the user, or of the container, does not allow them.
    """
    over = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=over.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise UserError(
            f"{doing} needs {count} more threads, and this process may start {len(started)}: raise the limit of the "
            "user's processes (ulimit -u), or that of the container (pids.max)."
        ) from None
    finally:
        over.set()
        for thread in started:
            thread.join()
