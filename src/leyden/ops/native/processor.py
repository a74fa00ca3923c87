"""What the processor is and what it can do, as the kernel says; of the standard library alone."""

import functools
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_FEATURES = ("flags", "Features")
"""What x86 and ARM call them."""
_KIND = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU variant", "CPU part")


@functools.cache
def _first() -> dict[str, str]:
    """What the kernel says of the first core; nothing on other systems than Linux."""
    said = {}
    try:
        with _CPUINFO.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.strip():
                    break
                name, _, value = line.partition(":")
                said[name.strip()] = value.strip()
    except OSError:
        pass
    return said


def features() -> frozenset[str]:
    """The extensions that the processor and the kernel have, by the kernel's names (``avx2``, ``asimd``)."""
    return frozenset(word for name in _FEATURES for word in _first().get(name, "").split())


def name() -> str:
    """The processor in words."""
    return _first().get("model name") or platform.processor() or platform.machine()


def identity() -> str:
    """The same for two machines only where code compiled for the one runs on the other."""
    kind = [_first().get(name, "") for name in _KIND] or [platform.platform()]
    return " ".join([platform.machine(), *kind, *sorted(features())])
