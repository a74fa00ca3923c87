"""Panics of libraries in Rust, as exceptions: PyO3 raises what is no Exception, which no handler of ours would see."""

from collections.abc import Iterator
from contextlib import contextmanager

from leyden.core.errors import UserError


@contextmanager
def panics_are_user_errors(message: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turn a panic inside into a UserError (of a ``kind``) that says ``message``; all else passes as it is."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # PyO3 exports no class to catch
            raise
        raise kind(message) from None
