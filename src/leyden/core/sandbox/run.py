"""Running a program in a sandbox: no network, no files but its own, and limits on all that it takes.

What keeps a program inside (Linux, x86-64 and ARM64):

- User, process, mount, network, IPC, host name and cgroup namespaces: it sees no other process and no network, and its
  file system holds the system's programs and the interpreter, read-only, and an empty scratch folder of bounded size.
- No capabilities, and none to come by; seen from outside it is the same user, or nobody where that is root.
- A filter of system calls (``seccomp.py``) and, where the kernel has it, Landlock (``landlock.py``).
- Limits: of each process by the kernel (address space, files, processor's time), of all together by the supervisor,
  which looks every hundredth of a second and ends the whole namespace. Nothing that the program started outlives it.

The supervisor, the first process inside and the program are three; how the program ended travels from the second to the
first over a pipe that the program never holds.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from leyden.core.errors import UserError
from leyden.core.sandbox.inside import SCRATCH

Status = Literal["ok", "failed", "timed out", "out of memory", "output cut", "killed"]

_SOURCES = str(Path(__file__).parents[3])
_BOOT = (
    f"import sys; sys.path.insert(0, {_SOURCES!r}); from leyden.core.sandbox.supervisor import main; "
    "sys.path.pop(0); main()"
)
_GRACE_SECONDS = 30.0
"""For the supervisor itself, on a machine that is busy."""
PYTHON = os.path.realpath(sys.executable)
"""The interpreter inside: this one, without the packages that are installed for it."""


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    Attributes:
        wall_seconds: by the clock.
        cpu_seconds: of the processor, all its processes together.
        memory_bytes: that all its processes hold at once, and that files in the scratch folder do not count to. One
            process may reserve twice as much and 256 MiB.
        processes: at once; a thread counts as one.
        output_bytes: of either of its streams; one that writes more is ended.
        disk_bytes: of all files in its scratch folder, which are in memory.
    """

    wall_seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 512 << 20
    processes: int = 32
    output_bytes: int = 64 << 10
    disk_bytes: int = 64 << 20


@dataclass(frozen=True)
class SandboxResult:
    """What came of a program.

    Attributes:
        status: ``ok``: it ended with code 0; ``failed``: with another, or by a signal of its own; otherwise which limit
            ended it, or ``killed`` where it was ended from outside.
        exit_code: what it ended with, the negative number of the signal that ended it, or None where the sandbox did.
        stdout, stderr: what it wrote, up to the limit.
        wall_seconds, cpu_seconds: that it took.
        memory_bytes: the most that was seen.
        reason: one line on the status, for people.
    """

    status: Status
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    wall_seconds: float
    cpu_seconds: float
    memory_bytes: int
    reason: str


class SandboxUnavailableError(UserError):
    """The kernel does not give what a sandbox needs; nothing was run."""


def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    files: Mapping[str, bytes] | None = None,
    limits: Limits | None = None,
    readable: Sequence[Path] = (),
) -> SandboxResult:
    """Run a program in a sandbox of its own, and wait until it has ended. Threads may call this at once.

    Args:
        argv: the program, by its absolute path, and its arguments. :data:`PYTHON` is there, so are those of ``/usr``.
        stdin: what it reads; it cannot be written to.
        files: what its scratch folder (where it begins) holds at first, by relative path.
        limits: what it may take.
        readable: more files and folders of this machine that it may read and execute.

    Raises:
        SandboxUnavailableError: the kernel does not give what is needed, in words.
        UserError: there is no such program.
    """
    limits = limits or Limits()
    paths = {os.path.realpath(path) for path in (sys.base_prefix, PYTHON, *readable)}
    request = {
        **asdict(limits),
        "argv": list(argv),
        "stdin": stdin.decode("latin-1"),
        "files": {_inside(name): content.decode("latin-1") for name, content in (files or {}).items()},
        "readable": sorted(paths),
        "environment": {
            "PATH": f"{os.path.dirname(PYTHON)}:/usr/bin:/bin",
            "HOME": SCRATCH,
            "TMPDIR": SCRATCH,
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    }
    return _result(_supervise(request, limits), limits)


def _inside(name: str) -> str:
    """A name of a file in the scratch folder."""
    parts = Path(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise UserError(f"a sandbox's file is named by a path below its scratch folder, and '{name}' is none.")
    return name


def _supervise(request: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The supervisor's report; empty where it gave none."""
    if sys.platform != "linux":
        raise _refusal(f"its system is {sys.platform}")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _BOOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            said, complaint = process.communicate(json.dumps(request).encode(), limits.wall_seconds + _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return {}
        except BaseException:
            process.kill()
            raise
    with contextlib.suppress(ValueError):
        return json.loads(said)
    if complaint:
        raise RuntimeError(f"the sandbox's supervisor failed: {complaint.decode(errors='replace')}")
    return {}


def _result(report: Mapping[str, Any], limits: Limits) -> SandboxResult:
    if "error" in report:
        raise _refusal(report["error"])
    if "not started" in report:
        raise UserError(
            f"the program cannot be started in the sandbox: {report['not started']}; it is named by its path."
        )
    status, code, reason = _verdict(report, limits)
    return SandboxResult(
        status,
        code,
        report.get("stdout", "").encode("latin-1"),
        report.get("stderr", "").encode("latin-1"),
        report.get("wall_seconds", 0.0),
        report.get("cpu_seconds", 0.0),
        report.get("memory_bytes", 0),
        reason,
    )


def _verdict(report: Mapping[str, Any], limits: Limits) -> tuple[Status, int | None, str]:
    """The status, the exit code and the reason."""
    memory = f"it took more than {limits.memory_bytes >> 20:,} MiB of memory"
    seconds = f"it took more than {limits.cpu_seconds:g} seconds of the processor"
    by_sandbox: dict[str, tuple[Status, str]] = {
        "wall": ("timed out", f"it took more than {limits.wall_seconds:g} seconds"),
        "cpu": ("timed out", seconds),
        "memory": ("out of memory", memory),
        "output": ("output cut", f"it wrote more than {limits.output_bytes:,} bytes"),
    }
    if report.get("ended") in by_sandbox:
        status, reason = by_sandbox[report["ended"]]
        return status, None, reason
    if "status" not in report:
        return "killed", None, "it was ended from outside"
    code = os.waitstatus_to_exitcode(report["status"])
    if code == 0:
        return "ok", 0, "it ended with code 0"
    if code in (-signal.SIGXCPU, -signal.SIGKILL) and report["cpu_seconds"] >= limits.cpu_seconds:
        return "timed out", code, seconds
    if code > 0 and report["stderr"].rstrip().rpartition("\n")[2].startswith("MemoryError"):
        return "out of memory", code, memory
    if code == -signal.SIGKILL:
        return "killed", code, "it was ended by SIGKILL, as the kernel does where the machine has no more memory"
    return "failed", code, f"it ended with code {code}" if code > 0 else f"it was ended by {_signal_name(-code)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _refusal(error: str) -> SandboxUnavailableError:
    return SandboxUnavailableError(
        f"this machine does not give what a sandbox needs ({error}), and untrusted programs are not run without one. "
        "It takes Linux 5.14 or newer on x86-64 or ARM64, with seccomp and with user namespaces for ordinary users: "
        "sysctl user.max_user_namespaces above 0; on Ubuntu kernel.apparmor_restrict_unprivileged_userns = 0; in a "
        "container a seccomp profile that allows unshare and mount."
    )
