"""Tables by the name of a kind: what a table does not know raises, in words, wherever it is looked up."""

from collections.abc import Mapping
from typing import TypeVar

from leyden.core.errors import UserError, suggest

_T = TypeVar("_T")


def entry_of(table: Mapping[str, _T], kind: str, what: str) -> _T:
    """The entry of ``kind`` in ``table``.

    Args:
        table: by the names that a configuration uses, as ``"linear_attention"``.
        kind: the name that is asked for.
        what: the question that the table answers, with what can be done about it, as ``"has no planner terms"``.

    Raises:
        UserError: the table has no such kind; the message lists those that it has.
    """
    if kind not in table:
        raise UserError(f"the type {kind!r} {what}{suggest(kind, table)}.")
    return table[kind]
