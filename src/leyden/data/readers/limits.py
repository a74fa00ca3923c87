"""Text extraction from untrusted documents in a process that is bounded in time and memory."""

import functools
from pathlib import Path
from typing import Any

from leyden.core.limited import LimitedProcess, LimitReached
from leyden.data.readers.problem import Problem
from leyden.data.readers.settings import ReadSettings

_FILE = Path(__file__).with_name("extraction.py")
_HTML = ("resiliparse.parse.html", "resiliparse.extract.html2text")
_MODULES = {"resiliparse": _HTML, "trafilatura": (*_HTML, "trafilatura"), "pypdf": ("pypdf", "pypdf.errors")}
_REASONS = {"time": "took too long", "memory": "took too much memory", "crash": "crashed its reader"}


def extracted(settings: ReadSettings, library: str, function: str, *arguments: Any) -> Any:
    """What a function of ``extraction.py`` returns.

    Args:
        settings: with the limits.
        library: whose process does it: "resiliparse", "trafilatura" or "pypdf".
        function: its name.
        arguments: its arguments.

    Raises:
        Problem: it took longer than ``max_extraction_seconds`` or more than ``max_extraction_bytes``.
        ImportError: the library is not installed.
        Exception: whatever the function raises.
    """
    process = _process(library, settings.max_extraction_seconds, settings.max_extraction_bytes)
    try:
        return process.call(function, *arguments)
    except LimitReached as reached:
        raise Problem(_REASONS[reached.reason], str(reached)) from None


@functools.lru_cache(maxsize=4)
def _process(library: str, seconds: float, memory_bytes: int) -> LimitedProcess:
    """One for a library and its limits, started when it is first needed."""
    return LimitedProcess(_FILE, _MODULES[library], seconds=seconds, memory_bytes=memory_bytes)
