"""Calls of an environment: a verifier or a tool that hangs ends in time, and one that fails says where."""

import traceback
from collections.abc import Callable
from typing import Any

from leyden.core.alarm import TimeIsUp, within
from leyden.core.errors import UserError
from leyden.core.log import logger

_log = logger(__name__)

MOST_IN_A_ROW = 8
"""Calls one after another that are ended before the run stops: an environment of which nothing comes back."""


class BrokenEnvironmentError(UserError):
    """A call of an environment raised an error, or call after call had to be ended."""


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
            BrokenEnvironmentError: so did those before it, :data:`MOST_IN_A_ROW` in all; or it raised an error, which
                is no :class:`UserError`, since these say that one completion cannot be graded.
        """
        what = getattr(method, "__qualname__", str(method))
        try:
            found = within(self._seconds, lambda: method(*arguments))
        except TimeIsUp:
            self._in_a_row += 1
            if self._in_a_row == MOST_IN_A_ROW:
                raise BrokenEnvironmentError(
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
        except UserError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise BrokenEnvironmentError(
                f"{what} raised {type(error).__name__}: {error} ({place.filename}, line {place.lineno}), given "
                f"{arguments[-1]!r:.200}; mend the environment, and resume the run."
            ) from error
        self._in_a_row = 0
        return found
