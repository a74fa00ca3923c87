"""A limit of time on a call within this process, of code that is not ours."""

import signal
import threading
from collections.abc import Callable
from typing import Any

from leyden.core.errors import UserError

_AGAIN = 1.0
"""Seconds after which a call is interrupted again that has caught what ended it."""


class TimeIsUp(UserError):  # noqa: N818 - the name says what happened to a call
    """A call took longer than it may, and was ended."""


class _Ring(BaseException):
    """Raised wherever the call is; no ``except Exception`` of it takes this for an error of its own."""


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What ``call`` returns, if it does so in time.

    An alarm of the system (SIGALRM) interrupts it: loops in Python, waiting, sleeping, reading and the matching of
    regular expressions end; work in compiled code ends once it comes back to Python. A call that sets alarms of its own
    takes this one away. Only the main thread can be interrupted; in another one, a call has no limit.

    Raises:
        TimeIsUp: it did not. That it caught the interruption, and went on to return something, changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    active, rung, found = True, False, None

    def ring(number: int, frame: object) -> None:
        nonlocal rung
        if active:
            rung = True
            raise _Ring

    handler = signal.signal(signal.SIGALRM, ring)
    before = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        try:
            found = call()
        finally:
            active = False
    except BaseException as error:
        if not rung or isinstance(error, KeyboardInterrupt | SystemExit):
            raise
    finally:
        active = False
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)
    if rung:
        raise TimeIsUp(f"it took more than {seconds:g} seconds")
    return found
