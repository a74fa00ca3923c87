"""The errors that a user can cause, and how a near name is suggested.

A :class:`UserError` says in one paragraph what was given, what is allowed and what to do. The command line prints
it without a traceback and exits with code 2; every other exception is a defect of Leyden and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: a recipe, a file, a shape, an option."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked to stop, and all was saved
    """The user stopped a long job (Ctrl-C or SIGTERM) and everything needed to go on was saved.

    The message says how to go on. The command line prints it and exits with code 130.
    """


def suggest(given: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest allowed name, or a list of what is allowed.

    Args:
        given: the name that was not recognised.
        allowed: every name that would have been.
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; allowed: {', '.join(names)}" if names else ""
