"""The processor's model and features, as the kernel reports them; of the standard library alone."""

import functools
import platform
from collections.abc import Mapping
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_FEATURES = ("flags", "Features")
"""What x86 and ARM call them."""
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
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


@functools.cache
def caches() -> Mapping[int, int]:
    """The bytes of the data caches that the first core uses, by their level; empty where the system does not say."""
    found: dict[int, int] = {}
    for folder in _CACHES.glob("index*"):
        try:
            level, kind, size = (
                (folder / name).read_text(encoding="ascii").strip() for name in ("level", "type", "size")
            )
            if kind != "Instruction":
                unit = _UNITS.get(size[-1:], 1)
                found[int(level)] = int(size.rstrip("KMG")) * unit
        except (OSError, ValueError):  # some virtual machines have files without numbers
            continue
    return {level: found[level] for level in sorted(found) if found[level] > 0}
