"""The sandbox: what a program may do in it, what ends it, and the ways out that are closed.

Every program that tries to get out is harmless where it succeeds, so that the tests can be seen to fail.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leyden.core.errors import UserError
from leyden.core.sandbox.probe import sandbox_text, try_to_escape
from leyden.core.sandbox.run import PYTHON, Limits, SandboxUnavailableError, _result, run

ROOMY = Limits(wall_seconds=60, cpu_seconds=60)


@pytest.fixture(scope="module", autouse=True)
def closed():
    try:
        return try_to_escape()
    except SandboxUnavailableError as error:
        pytest.skip(str(error))


def python(source, limits=ROOMY, **more):
    return run([PYTHON, "-I", "-S", "-c", source], limits=limits, **more)


def printed(source, limits=ROOMY, **more):
    result = python(source, limits, **more)
    assert result.status == "ok", (result.reason, result.stderr)
    return result.stdout.decode().split()


def alive(marker):
    """Whether a process of this machine has the marker among its arguments."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    return any(marker.encode() in line for line in lines)


def test_what_a_program_gets_and_what_is_told_of_it():
    source = "import os, sys; print(sys.stdin.read(), open('given/a').read(), os.getcwd()); sys.exit(3)"
    result = python(source, stdin=b"in", files={"given/a": b"\xff".hex().encode()})
    assert (result.status, result.exit_code) == ("failed", 3)
    assert result.stdout.split() == [b"in", b"ff", b"/scratch"]
    assert 0 < result.cpu_seconds < 60 and 0 < result.wall_seconds < 60 and result.memory_bytes > 1 << 20
    assert result.reason == "it ended with code 3"
    assert run(["/usr/bin/true"]).status == "ok"


def test_a_program_that_a_signal_ends():
    result = python("import os; os.kill(os.getpid(), 11)")
    assert (result.status, result.exit_code, result.reason) == ("failed", -11, "it was ended by SIGSEGV")


def test_programs_and_files_that_are_none():
    with pytest.raises(UserError, match=r"cannot be started in the sandbox: /no/such: No such file"):
        run(["/no/such"])
    with pytest.raises(UserError, match=r"'\.\./a' is none"):
        run([PYTHON], files={"../a": b""})


def test_a_kernel_without_namespaces_is_refused_in_words():
    with pytest.raises(
        SandboxUnavailableError, match=r"\(unshare: .*\), and untrusted programs are not run without one"
    ):
        _result({"error": "unshare: Operation not permitted"}, Limits())


def test_every_way_out_that_is_tried_is_closed(closed):
    assert all(closed.values()) and len(closed) == 6
    assert "is refused" in sandbox_text()


def test_time():
    result = python("import time; time.sleep(600)", Limits(wall_seconds=0.5))
    assert (result.status, result.exit_code) == ("timed out", None)
    assert result.reason == "it took more than 0.5 seconds"
    result = python(
        "import os\nfor _ in range(3): os.fork()\nwhile True: pass", Limits(wall_seconds=60, cpu_seconds=0.5)
    )
    assert (result.status, result.reason) == ("timed out", "it took more than 0.5 seconds of the processor")


def test_a_fork_bomb():
    source = """
import os, time
for number in range(300):
    try:
        if os.fork() == 0:
            time.sleep(600)
    except BlockingIOError:
        print(number)
        break
"""
    (started,) = printed(source, Limits(wall_seconds=60, processes=16))
    assert int(started) == 15


def test_a_memory_bomb():
    small = Limits(wall_seconds=60, memory_bytes=64 << 20)
    result = python("kept = [bytearray(1 << 20) for _ in range(300)]", small)
    assert (result.status, result.reason) == ("out of memory", "it took more than 64 MiB of memory")
    result = python("bytearray(1 << 40)", small)  # refused at once
    assert result.status == "out of memory"


def test_a_memory_bomb_of_many_processes():
    source = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        kept = bytearray(os.urandom(1)) * (30 << 20)
        time.sleep(600)
time.sleep(5)
"""
    result = python(source, Limits(wall_seconds=60, memory_bytes=100 << 20))
    assert result.status == "out of memory" and result.memory_bytes > 100 << 20


def test_endless_output():
    result = python("while True: print('x' * 999)", Limits(wall_seconds=60, output_bytes=5000))
    assert (result.status, result.reason) == ("output cut", "it wrote more than 5,000 bytes")
    assert len(result.stdout) == 5000
    result = python(
        "import sys\nwhile True: print('x' * 999, file=sys.stderr)", Limits(wall_seconds=60, output_bytes=50)
    )
    assert result.status == "output cut" and len(result.stderr) == 50


def test_files_of_the_machine_cannot_be_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("told")
    tmp_path.chmod(0o755)
    source = f"""
import os
home, project = {str(Path.home())!r}, {str(Path(__file__).parents[2])!r}
for path in ({str(secret)!r}, home, project, "/etc/passwd", "/proc/self/root"):
    for link in (path, "/tmp/link", "/tmp/../.." + path):
        if link == "/tmp/link":
            os.path.lexists(link) and os.unlink(link)
            os.symlink(path, link)
        try:
            found = os.listdir(link) if os.path.isdir(link) else [open(link).read()]
            print(*set(found) - {{".pyenv"}})  # an interpreter may stand there
        except OSError:
            pass
print("done")
"""
    assert printed(source) == ["done"]


def test_files_of_the_machine_cannot_be_written(tmp_path):
    mine = tmp_path / "weights"
    mine.write_text("as they were")
    mine.chmod(0o666)
    tmp_path.chmod(0o777)
    source = f"""
import os
tries = [{str(mine)!r}, os.__file__, "/usr/written", "/written", "/dev/written"]
for path in tries:
    try:
        open(path, "a").write("x")
        print(path)
    except OSError:
        pass
for change in (lambda: os.chmod(os.__file__, 0o777), lambda: os.unlink(os.__file__), lambda: os.rename("/usr", "/us")):
    try:
        change()
        print("changed")
    except OSError:
        pass
print("done")
"""
    assert printed(source, readable=[tmp_path]) == ["done"]
    assert mine.read_text() == "as they were"
    assert printed(f"print(open({str(mine)!r}).read())", readable=[tmp_path]) == ["as", "they", "were"]


def test_no_socket_reaches_anything(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        source = f"""
import socket
kinds = [(family, kind) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK)
         for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW)]
for family, kind in kinds:
    try:
        socket.socket(family, kind)
        print("opened")
    except OSError:
        pass
try:
    socket.create_connection({address!r}, 5)
    print("connected")
except OSError:
    pass
one, other = socket.socketpair()
one.send(b"within")
print(other.recv(9).decode())
"""
        assert printed(source) == ["within"]


def test_no_process_outside_is_killed():
    source = f"""
import os
for process in (os.getppid(), 1, {os.getpid()}, {os.getppid()}, -1):
    for number in (15, 9):
        try:
            os.kill(process, number)
        except OSError:
            pass
print("alive")
"""
    assert printed(source) == ["alive"]


def test_nothing_is_traced_and_no_memory_read():
    source = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if child == 0:
    os.read(os.pipe()[0], 1)
buffer = ctypes.create_string_buffer(8)
class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
here, there = Piece(ctypes.addressof(buffer), 8), Piece(id(None), 8)
for process in (os.getppid(), {os.getpid()}, child):
    if libc.ptrace(16, process, 0, 0) == 0:
        print("traced", process)
    if libc.process_vm_readv(process, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) >= 0:
        print("read", process)
    for name in ("mem", "environ", "fd", "root", "cwd"):
        if os.path.exists(f"/proc/{{process}}/{{name}}"):
            print("seen", process, name)
os.kill(child, 9)
print("done")
"""
    assert printed(source) == ["done"]


def test_no_process_stays_behind():
    marker = f"986{os.getpid()}.25"
    source = f"""
import os, subprocess
subprocess.Popen(["/usr/bin/sleep", {marker!r}], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/usr/bin/sleep", ["sleep", {marker!r}])
    os._exit(0)
print("left")
"""
    began = time.monotonic()
    assert printed(source) == ["left"]
    assert time.monotonic() - began < 60 and not alive(marker)


@pytest.mark.parametrize("whom", ["trainer", "supervisor"])
def test_a_sandbox_ends_with_who_started_it(whom):
    marker = f"985{os.getpid()}.{len(whom)}"
    source = (
        f"from leyden.core.sandbox.run import *; run(['/usr/bin/sleep', {marker!r}], limits=Limits(wall_seconds=600))"
    )
    trainer = subprocess.Popen([sys.executable, "-c", source], env={**os.environ, "PYTHONPATH": "src"})
    deadline = time.monotonic() + 60
    try:
        while not alive(f"sleep\0{marker}") and time.monotonic() < deadline:
            time.sleep(0.05)
        (supervisor,) = Path(f"/proc/{trainer.pid}/task/{trainer.pid}/children").read_text().split()
        os.kill(trainer.pid if whom == "trainer" else int(supervisor), signal.SIGKILL)
        while alive(f"sleep\0{marker}") and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        trainer.kill()
        trainer.wait()
    assert time.monotonic() < deadline and not alive(f"sleep\0{marker}")


def test_the_scratch_folder_is_bounded():
    source = """
import os
def fill(names):
    written = 0
    try:
        for name in names:
            with open(name, "wb") as file:
                for _ in range(20):
                    written += file.write(bytes(1 << 20))
    except OSError:
        pass
    return written >> 20
print(fill(["one"]))
os.path.exists("one") and os.unlink("one")
print(fill("abcdefgh"))
for name in os.listdir("."):
    os.unlink(name)
made = 0
try:
    for made in range(30_000):
        open(f"{made}", "w").close()
except OSError:
    pass
print(made)
"""
    one, several, made = map(int, printed(source, Limits(wall_seconds=60, cpu_seconds=60, disk_bytes=4 << 20)))
    assert one <= 4 and several <= 4 and made < 20_000


def test_memory_that_no_limit_would_count():
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.shmget(0, 1 << 20, 0o1600), libc.syscall(448 - 1, 0))
try:
    os.memfd_create("x")
    print("made")
except OSError:
    pass
"""
    assert printed(source) == ["-1", "-1"]


def test_what_it_reads_cannot_be_changed():
    source = "import os\ntry: print(os.pwrite(0, b'x', 0))\nexcept OSError: print(os.read(0, 9).decode())"
    assert printed(source, stdin=b"as given") == ["as", "given"]
