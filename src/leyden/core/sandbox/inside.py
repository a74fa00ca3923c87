"""Inside the namespaces: the first process, which builds the file system and reaps, and the one that is the program.

Neither runs anything of the program's before all walls stand. The first process stays outside of Landlock, of the
filter of system calls and of the limits; the program has no capability over it, so that it can neither be traced nor
have its files opened, and the kernel does not let signals from inside end it.
"""

import json
import math
import os
import resource
import signal
import stat
from typing import Any, NamedTuple

from leyden.core.sandbox import kernel, landlock, seccomp

SCRATCH = "/scratch"
"""The only folder inside that can be written to, also by the name ``/tmp``; the program begins in it."""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives")
_OPEN_FILES = 256
_MOST_FILES = 16384
"""In the scratch folder."""


class Pipes(NamedTuple):
    """Ends of pipes that the processes inside are given.

    Attributes:
        stdin, stdout, stderr: the program's.
        status: where the first process says how the program ended, and either says which wall could not be built.
    """

    stdin: int
    stdout: int
    stderr: int
    status: int


def run_inside(request: dict[str, Any], user: int, pipes: Pipes) -> None:
    """Be the first process of the namespaces: build the walls, start the program, report how it ended. Never returns.

    Args:
        request: as :func:`leyden.core.sandbox.run.run` makes it.
        user: the id that the program runs under.
        pipes: all else that is open is closed.
    """
    try:
        kernel.die_with_parent(signal.SIGKILL)
        write("/proc/self/oom_score_adj", "1000")  # sooner this than the trainer
        kernel.unshare(kernel.NEW_MOUNT | kernel.NEW_NETWORK | kernel.NEW_IPC | kernel.NEW_UTS | kernel.NEW_CGROUP)
        _build_root(request, user)
        kernel.close_to_others()
        program = os.fork()
        if program == 0:
            _become_program(request, user, pipes)
        for end in (pipes.stdin, pipes.stdout, pipes.stderr):
            os.close(end)
        while True:
            process, status = os.wait()
            if process == program:
                tell(pipes.status, {"status": status})
                os._exit(0)
    except BaseException as error:
        tell(pipes.status, {"error": str(error)})
        os._exit(1)


def tell(pipe: int, said: dict[str, Any]) -> None:
    """Write one line of JSON."""
    os.write(pipe, json.dumps(said).encode() + b"\n")


def write(path: str, text: str) -> None:
    """Write a file of the kernel's, or a new one."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _build_root(request: dict[str, Any], user: int) -> None:
    """A file system of the system's programs, the interpreter, four devices and an empty scratch folder; root is it."""
    kernel.mount("none", "/", "", kernel.MOUNT_REC | kernel.MOUNT_PRIVATE)
    paths = [*_SYSTEM, *sorted(request["readable"]), *_DEVICES]
    places = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths if os.path.exists(path)}
    root = "/tmp"  # hides the host's from here on; what is needed of the host is open
    flags = kernel.MOUNT_NOSUID | kernel.MOUNT_NODEV
    kernel.mount("tmpfs", root, "tmpfs", flags, "size=1m,mode=755")
    for path, place in places.items():
        _bind(path, place, root)
        os.close(place)
    scratch = root + SCRATCH
    os.mkdir(scratch)
    for name in ("/dev/shm", "/tmp"):
        if not os.path.exists(root + name):  # as it does where a folder below it is to be read
            os.symlink(SCRATCH, root + name)
    sizes = f"size={request['disk_bytes']},nr_inodes={_MOST_FILES},mode=700,uid={user},gid={user}"
    kernel.mount("tmpfs", scratch, "tmpfs", flags, sizes)
    for name, content in request["files"].items():
        path = f"{scratch}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content.encode("latin-1"))
        os.chown(path, user, user)
    kernel.change_root(root)
    kernel.make_read_only("/", below=False)


def _bind(path: str, place: int, root: str) -> None:
    """Give a file, folder or link of the host the same name inside, read-only."""
    target = root + path
    if os.path.exists(target) and os.path.samestat(os.stat(target), os.fstat(place)):
        return  # below a folder that is there already
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    mode = os.fstat(place).st_mode
    if stat.S_ISDIR(mode):
        os.makedirs(target, exist_ok=True)
    else:
        write(target, "")
    kernel.mount(f"/proc/self/fd/{place}", target, "", kernel.MOUNT_BIND | kernel.MOUNT_REC)
    kernel.make_read_only(target, below=stat.S_ISDIR(mode), devices=stat.S_ISCHR(mode))


def _become_program(request: dict[str, Any], user: int, pipes: Pipes) -> None:
    """Give everything up that the program may not have, then be the program. Never returns."""
    status = -1
    try:
        os.setsid()
        status = _arrange_files(pipes)
        kernel.bound_capabilities()
        if os.getuid() != user:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        kernel.drop_capabilities()
        for signal_number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
            signal.signal(signal_number, signal.SIG_DFL)
        os.umask(0o077)
        os.chdir(SCRATCH)
        _limit(request, spare=0 if request["was_root"] else 2)
        kernel.forbid_new_privileges()
        version = landlock.restrict(read=["/"], write=[SCRATCH], devices=_DEVICES)
        tell(status, {"landlock": version})
        kernel.install_filter(seccomp.filter_program())
        _execute(request, status)
    except BaseException as error:
        tell(status, {"error": str(error)})
    os._exit(127)


def _execute(request: dict[str, Any], status: int) -> None:
    try:
        os.execve(request["argv"][0], request["argv"], request["environment"])
    except OSError as error:
        tell(status, {"not started": f"{request['argv'][0]}: {error.strerror}"})


def _arrange_files(pipes: Pipes) -> int:
    """Leave the three streams open, and the pipe for the status until a program is executed; its new number."""
    os.dup2(pipes.status, 63)
    for number, end in enumerate((pipes.stdin, pipes.stdout, pipes.stderr)):
        os.dup2(end, number + 60)
    for number in range(3):
        os.dup2(60 + number, number)
    status = os.dup2(63, 3, inheritable=False)
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return status


def _limit(request: dict[str, Any], spare: int) -> None:
    """Set the limits of a process; ``spare`` processes of the same user are none of the program's."""
    for what, limit in {
        resource.RLIMIT_CPU: math.ceil(request["cpu_seconds"]) + 1,
        resource.RLIMIT_AS: 2 * request["memory_bytes"] + (256 << 20),
        resource.RLIMIT_NPROC: request["processes"] + spare,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_FSIZE: request["disk_bytes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }.items():
        _, hard = resource.getrlimit(what)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, limit))
