"""System calls of Linux that Python has no name for, by ctypes; each raises OSError with the name of the call."""

import ctypes
import os

NEW_CGROUP, NEW_UTS, NEW_IPC, NEW_USER = 0x02000000, 0x04000000, 0x08000000, 0x10000000
NEW_PID, NEW_NETWORK, NEW_MOUNT = 0x20000000, 0x40000000, 0x00020000
NEW_ANY = NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_USER | NEW_PID | NEW_NETWORK | NEW_MOUNT
"""Every kind of namespace that a process can enter by itself."""

MOUNT_NOSUID, MOUNT_NODEV, MOUNT_BIND, MOUNT_REC, MOUNT_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_ATTR_READ_ONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_DETACH, _AT_THIS_DIRECTORY, _AT_RECURSIVE = 2, -100, 0x8000

_PARENT_DEATH_SIGNAL, _DUMPABLE, _BOUNDING_DROP, _NO_NEW_PRIVILEGES, _SECCOMP = 1, 4, 24, 38, 22
_AMBIENT, _AMBIENT_CLEAR = 47, 4
_SECCOMP_FILTER = 2
_CAPABILITY_VERSION = 0x20080522

# The same numbers on every architecture that has them.
_MOUNT_SETATTR, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 442, 444, 445, 446

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def unshare(flags: int) -> None:
    """Enter new namespaces of the kinds in ``flags``."""
    _checked("unshare", _libc.unshare(flags))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _checked(f"mount {target}", _libc.mount(*arguments))


def make_read_only(target: str, *, below: bool, devices: bool = False) -> None:
    """Let nothing be written to a mount, and no file of it give privileges or, but for ``devices``, be a device.

    Args:
        target: the mount.
        below: also of the mounts below it.
        devices: leave devices be devices.
    """
    attributes = _ATTR_READ_ONLY | _ATTR_NOSUID | (0 if devices else _ATTR_NODEV)
    asked = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if below else 0
    system_call("mount_setattr", _MOUNT_SETATTR, _AT_THIS_DIRECTORY, os.fsencode(target), flags, asked, 32)


def change_root(root: str) -> None:
    """Make the mount ``root`` the root of this process, and let go of the older one."""
    os.chdir(root)
    _checked("pivot_root", _libc.pivot_root(b".", b"."))
    _checked("umount2", _libc.umount2(b".", _DETACH))
    os.chdir("/")


def die_with_parent(signal: int) -> None:
    """Be sent ``signal`` when the parent ends."""
    _prctl("PR_SET_PDEATHSIG", _PARENT_DEATH_SIGNAL, signal)


def close_to_others() -> None:
    """Let no process without capabilities over this one read its memory and files, or trace it."""
    _prctl("PR_SET_DUMPABLE", _DUMPABLE, 0)


def forbid_new_privileges() -> None:
    """Let no program that is executed have more rights than this process."""
    _prctl("PR_SET_NO_NEW_PRIVS", _NO_NEW_PRIVILEGES, 1)


def bound_capabilities() -> None:
    """Let no capability come back by executing a program."""
    for capability in range(64):
        if _libc.prctl(_BOUNDING_DROP, capability, 0, 0, 0):  # the kernel has no more of them
            break
    _prctl("PR_CAP_AMBIENT", _AMBIENT, _AMBIENT_CLEAR)


def drop_capabilities() -> None:
    """Give all capabilities up."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _checked("capset", _libc.capset(header, (ctypes.c_uint32 * 6)()))


def install_filter(instructions: bytes) -> None:
    """Filter this process's system calls, and those of its children, by a BPF program for seccomp."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    program = Program(len(instructions) // 8, instructions)
    _prctl("PR_SET_SECCOMP", _SECCOMP, _SECCOMP_FILTER, ctypes.byref(program))


def system_call(name: str, number: int, *arguments: object) -> int:
    """The result of a system call by its number."""
    return _checked(name, _libc.syscall(ctypes.c_long(number), *map(_wide, arguments)))


def _wide(argument: object) -> object:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _prctl(name: str, option: int, argument: object, other: object = 0) -> None:
    _checked(name, _libc.prctl(option, *map(_wide, (argument, other, 0, 0))))


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
