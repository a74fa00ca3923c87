"""Landlock: a second wall around the files, in the kernel's own security layer, where it is built in."""

import ctypes
import os
import struct
from collections.abc import Iterable

from leyden.core.sandbox import kernel

_EXECUTE, _WRITE, _READ, _LIST = 1, 2, 4, 8
_READ_ALL = _EXECUTE | _READ | _LIST
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights to files each version knows; later ones have those of version 5."""
_NETWORK, _SCOPES = 0b11, 0b11
"""To bind and connect TCP, from version 4; to reach sockets and processes outside by name or signal, from version 6."""
_VERSION_FLAG, _PATH_BENEATH = 1, 1


def version() -> int:
    """The version of Landlock that the kernel has; 0 where it has none, or has it turned off."""
    try:
        return kernel.system_call("landlock_create_ruleset", kernel.LANDLOCK_CREATE, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def restrict(*, read: Iterable[str], write: Iterable[str], devices: Iterable[str]) -> int:
    """Let this process and its children read and execute below ``read`` and write below ``write`` alone.

    Args:
        read: folders.
        write: folders of which everything is allowed.
        devices: files that are written to, but not made.

    Returns:
        The version of Landlock; 0 where there is none, and nothing is restricted.
    """
    abi = version()
    if not abi:
        return 0
    every = (1 << _FILE_RIGHTS[min(abi, 5)]) - 1
    handled = struct.pack("=QQQ", every, _NETWORK, _SCOPES)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    rules = kernel.system_call(
        "landlock_create_ruleset", kernel.LANDLOCK_CREATE, ctypes.c_char_p(handled), len(handled), 0
    )
    rights = [(read, _READ_ALL), (write, every), (devices, _READ | _WRITE)]
    for path, right in ((path, right) for paths, right in rights for path in paths):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.c_char_p(struct.pack("=Qi", right, place))
        kernel.system_call("landlock_add_rule", kernel.LANDLOCK_ADD, rules, _PATH_BENEATH, rule, 0)
        os.close(place)
    kernel.system_call("landlock_restrict_self", kernel.LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)
    return abi
