"""The resident memory of this process, now and at its highest (Linux)."""

from pathlib import Path


def resident_bytes() -> int:
    """What is resident now."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Let the highest level begin anew from now (``/proc/self/clear_refs``, proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(process: int | None = None) -> int:
    """The highest level since :func:`reset_peak`; unlike ``ru_maxrss``, never a parent process's.

    Args:
        process: another one, of which 0 is said once it has ended; None: this one.
    """
    try:
        return _status("VmHWM", "self" if process is None else str(process))
    except (OSError, RuntimeError):
        if process is None:
            raise
        return 0


def _status(field: str, process: str = "self") -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
