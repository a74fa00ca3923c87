"""A limit of time on what an environment is asked: a verifier or a tool that hangs must not stop a run for ever."""

from collections.abc import Callable
from typing import Any

from leyden.core.alarm import TimeIsUp, within
from leyden.core.errors import UserError
from leyden.core.log import logger

_log = logger(__name__)

MOST_IN_A_ROW = 8
"""Calls one after another that are ended before the run stops: an environment of which nothing comes back."""


class HangingEnvironmentError(UserError):
    """Call after call of an environment had to be ended."""


class CallLimit:
    """Calls methods of an environment, and ends calls that take too long; one for each drawing of completions.

    Args:
        seconds: by the clock, for one call.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._in_a_row = seconds, 0

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """What the method returns.

        Raises:
            TimeIsUp: it took too long. A warning says so.
            HangingEnvironmentError: so did those before it, :data:`MOST_IN_A_ROW` in all.
        """
        try:
            found = within(self._seconds, lambda: method(*arguments))
        except TimeIsUp:
            self._in_a_row += 1
            what = getattr(method, "__qualname__", str(method))
            if self._in_a_row == MOST_IN_A_ROW:
                raise HangingEnvironmentError(
                    f"{what} took more than {self._seconds:g} seconds {MOST_IN_A_ROW} times in a row; mend the "
                    "environment, or raise rl.call_seconds, and resume the run."
                ) from None
            _log.warning(
                "%s took more than %g seconds and was ended (rl.call_seconds); the completion has no reward: %.200r",
                what,
                self._seconds,
                arguments[-1],
            )
            raise
        self._in_a_row = 0
        return found
