"""The supervisor of one sandbox: starts the namespaces, watches time, memory and output, and reports.

It is a process of its own, since a program with threads, as a trainer is one, cannot safely be copied by ``fork``.
It reads one request in JSON from its standard input and writes one report to its standard output, which the program
never has. When nobody reads the report any more, or the supervisor is killed, the sandbox ends with it.
"""

import errno
import fcntl
import json
import os
import select
import signal
import sys
import time
from typing import Any

from leyden.core.sandbox import kernel
from leyden.core.sandbox.inside import Pipes, run_inside, write

NOBODY = 65534
_OLDEST = (5, 14)
_LOOK_SECONDS = 0.01
"""Between two looks at time and memory."""
_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Run one request."""
    request = json.load(sys.stdin)
    stdin = _sealed(request["stdin"].encode("latin-1"))
    (out, out_end), (err, err_end), (status, status_end) = os.pipe(), os.pipe(), os.pipe()
    watch = _Watch(request, out, err, status)
    began = time.monotonic()
    try:
        _check_version()
        user = _enter_user_namespace(request)
        kernel.unshare(kernel.NEW_PID)
        init = os.fork()
        if init == 0:
            run_inside(request, user, Pipes(stdin, out_end, err_end, status_end))
    except OSError as error:
        _report({"error": str(error)})
        return
    for end in (stdin, out_end, err_end, status_end):
        os.close(end)
    watch.follow(init, began)
    _, _, usage = os.wait4(init, 0)
    watch.drain()
    _report(
        {
            **watch.said,
            "ended": watch.ended,
            "stdout": watch.streams[out].decode("latin-1"),
            "stderr": watch.streams[err].decode("latin-1"),
            "wall_seconds": time.monotonic() - began,
            "cpu_seconds": max(watch.cpu_seconds, usage.ru_utime + usage.ru_stime),
            "memory_bytes": max(watch.most_bytes, 1024 * usage.ru_maxrss),
        }
    )


def _check_version() -> None:
    """From this version on, processes are counted by namespace; before, their number could not be limited."""
    release = os.uname().release
    version = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in release.split(".")[:2])
    if version < _OLDEST:
        raise OSError(errno.ENOSYS, f"the kernel is Linux {release}")


def _report(report: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(report))
    sys.stdout.flush()


def _sealed(content: bytes) -> int:
    """A file of this content in memory that can be read, and neither changed nor grown."""
    file = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return file


def _enter_user_namespace(request: dict[str, Any]) -> int:
    """Become the owner of a new user namespace; the id of the user that the program is to be.

    An ordinary user stays itself. Root makes the program nobody, whose name a process outside has to write.
    """
    user, group = os.geteuid(), os.getegid()
    request["was_root"] = user == 0
    if user != 0:
        kernel.unshare(kernel.NEW_USER)
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{user} {user} 1")
        write("/proc/self/gid_map", f"{user} {group} 1")
        return user
    (ready, ready_end), me = os.pipe(), os.getpid()
    helper = os.fork()
    if helper == 0:
        os.close(ready_end)
        os.read(ready, 1)
        try:
            for ids in ("uid_map", "gid_map"):
                write(f"/proc/{me}/{ids}", f"0 0 1\n{NOBODY} {NOBODY} 1")
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    kernel.unshare(kernel.NEW_USER)
    os.close(ready_end)
    _, status = os.waitpid(helper, 0)
    os.close(ready)
    if status:
        number = os.waitstatus_to_exitcode(status)
        raise OSError(number, f"writing uid_map: {os.strerror(number)}")
    return NOBODY


class _Watch:
    """What comes out of a sandbox, and whether it keeps its limits.

    Args:
        request: with the limits.
        out, err: the pipes of the program's two streams.
        status: the pipe of the first process.

    Attributes:
        streams: what the program wrote, by the pipes.
        said: what came over the pipe of the first process.
        ended: which limit ended the program; empty for none.
        most_bytes: of memory that all processes held at once.
        cpu_seconds: that all took, as far as was seen.
    """

    def __init__(self, request: dict[str, Any], out: int, err: int, status: int) -> None:
        self.streams = {out: bytearray(), err: bytearray()}
        self.said: dict[str, Any] = {}
        self.ended = ""
        self.most_bytes = 0
        self.cpu_seconds = 0.0
        self._request, self._status, self._heard = request, status, b""

    def follow(self, init: int, began: float) -> None:
        """Wait until the program has ended, or end it."""
        poll = select.poll()
        for pipe in (*self.streams, self._status):
            os.set_blocking(pipe, False)
            poll.register(pipe, select.POLLIN)
        poll.register(1, 0)  # tells when nobody reads the report
        looked = began
        open_pipes = {*self.streams, self._status}
        while self._status in open_pipes and not self.ended:
            for pipe, _ in poll.poll(1000 * _LOOK_SECONDS):
                if pipe == 1:
                    self.ended = "nobody waits"
                elif not self._read(pipe):
                    poll.unregister(pipe)
                    open_pipes.discard(pipe)
            if time.monotonic() - looked >= _LOOK_SECONDS:
                self._look(init, time.monotonic() - began)
                looked = time.monotonic()
        if self.ended:
            os.kill(init, signal.SIGKILL)

    def drain(self) -> None:
        """Read what the program, which has ended, left in its pipes."""
        for pipe in self.streams:
            os.set_blocking(pipe, True)
            while self._read(pipe):
                pass

    def _read(self, pipe: int) -> bool:
        """Read some of a pipe; False at its end."""
        try:
            some = os.read(pipe, 65536)
        except BlockingIOError:
            return True
        if pipe == self._status:
            self._heard += some
            for line in self._heard.split(b"\n")[:-1]:
                self.said |= json.loads(line)
            return bool(some)
        room = self._request["output_bytes"] - len(self.streams[pipe])
        self.streams[pipe] += some[:room]
        if len(some) > room:
            self.ended = self.ended or "output"
        return bool(some)

    def _look(self, init: int, seconds: float) -> None:
        processes = list(_below(init))
        memory = sum(_resident(process) for process in processes)
        if memory > self._request["memory_bytes"]:  # shared pages were counted once for each
            memory = sum(_share(process) for process in processes)
        self.most_bytes = max(self.most_bytes, memory)
        self.cpu_seconds = max(self.cpu_seconds, sum(map(_cpu_seconds, processes)))
        if memory > self._request["memory_bytes"]:
            self.ended = "memory"
        elif seconds > self._request["wall_seconds"]:
            self.ended = "wall"
        elif self.cpu_seconds > self._request["cpu_seconds"]:
            self.ended = "cpu"


def _text(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()


def _below(process: int) -> list[int]:
    """A process's children, theirs, and so on."""
    found, todo = [], [process]
    while todo:
        try:
            threads = os.listdir(f"/proc/{(parent := todo.pop())}/task")
            texts = [_text(f"/proc/{parent}/task/{thread}/children") for thread in threads]
        except OSError:  # it has ended
            continue
        children = [int(child) for text in texts for child in text.split()]
        found += children
        todo += children
    return found


def _resident(process: int) -> int:
    try:
        return _PAGE * int(_text(f"/proc/{process}/statm").split()[1])
    except (OSError, IndexError):
        return 0


def _share(process: int) -> int:
    """The memory of a process, of shared pages its share; where the kernel does not say, all of it."""
    try:
        lines = _text(f"/proc/{process}/smaps_rollup").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return _resident(process)


def _cpu_seconds(process: int) -> float:
    """Of a process and of its children that have ended."""
    try:
        fields = _text(f"/proc/{process}/stat").rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS
    except (OSError, ValueError):
        return 0.0
