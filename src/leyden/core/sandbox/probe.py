"""What the kernel of this machine gives to the sandbox, found by trying to get out of one.

Every run refuses by itself where a wall cannot be built; this says beforehand, and for people, which do hold.
"""

import json
from pathlib import Path

from leyden.core.sandbox import landlock
from leyden.core.sandbox.run import PYTHON, Limits, SandboxUnavailableError, run

_PROCESSES = 6


def sandbox_text() -> str:
    """One line: whether programs can be run in a sandbox on this machine, and what keeps them in or what is missing."""
    try:
        held = try_to_escape()
    except SandboxUnavailableError as error:
        return f"none: {error}"
    open_ones = [way for way, closed in held.items() if not closed]
    if open_ones:
        return f"not safe: {', '.join(open_ones)} is possible inside"
    version = landlock.version()
    walls = f"namespaces, seccomp, Landlock {version}" if version else "namespaces, seccomp; no Landlock"
    return f"{walls}, limits; tried: {', '.join(held)} is refused"


def try_to_escape() -> dict[str, bool]:
    """Ways out of a sandbox, and whether each was closed when a program inside tried it.

    Raises:
        SandboxUnavailableError: there is no sandbox.
    """
    source = Path(__file__).with_name("tries.py").read_text(encoding="utf-8")
    limits = Limits(wall_seconds=60.0, processes=_PROCESSES)
    result = run([PYTHON, "-I", "-S", "-c", source, str(_PROCESSES)], limits=limits)
    if result.status != "ok":
        said = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise SandboxUnavailableError(f"a program that does no harm did not end well in it: {result.reason} ({said})")
    return json.loads(result.stdout)
