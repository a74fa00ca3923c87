"""Every kind of stage, and where its class is; a class is imported when a recipe asks for it."""

from importlib import import_module

from leyden.data.stage import Stage

KINDS: dict[str, tuple[str, str]] = {}
"""For each kind its module in ``leyden.data`` and its class."""


def stage_class(kind: str) -> type[Stage]:
    """The class of a kind in :data:`KINDS`."""
    module, name = KINDS[kind]
    return getattr(import_module(f"leyden.data.{module}"), name)
