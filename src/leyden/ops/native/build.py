"""From the sources to a library; of the standard library alone, since building a wheel needs it without PyTorch."""

import errno
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent.parent
"""Every ``.cpp`` and ``.h`` below this folder is part of the library."""

FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fno-math-errno", "-ffp-contract=fast", "-fPIC")
TIMEOUT_SECONDS = 900
"""Of one file; fifteen seconds are usual for all of them, on two cores."""

_DISK = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT)}


class BuildError(Exception):
    """The library cannot be compiled here; the message says why, in a line."""


@dataclass(frozen=True)
class Level:
    """Processors that one library is for.

    Attributes:
        flags: of the compiler.
        needs: the features that a processor must have, by the kernel's names.
    """

    flags: tuple[str, ...]
    needs: frozenset[str] = frozenset()


def _levels() -> dict[str, dict[str, Level]]:
    v2 = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
    v3 = v2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
    v4 = v3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
    bf16 = v4 | {"avx512_bf16"}
    amx = ("-mamx-tile", "-mamx-int8", "-mamx-bf16")  # not used, but PyTorch's products are faster where there is one
    return {
        "x86_64": {
            "x86-64-v2": Level(("-march=x86-64-v2",), v2),
            "x86-64-v3": Level(("-march=x86-64-v3",), v3),
            "x86-64-v4": Level(("-march=x86-64-v4",), v4),
            "x86-64-v4-bf16": Level(("-march=x86-64-v4", "-mavx512bf16"), bf16),
            "x86-64-v4-amx": Level(("-march=x86-64-v4", "-mavx512bf16", *amx), bf16 | {"amx_bf16", "amx_tile"}),
        },
        "aarch64": {"armv8-a": Level(("-march=armv8-a",))},
    }


LEVELS = _levels()
"""Of each machine, the levels that a wheel has a library for, the best last."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler.

    Attributes:
        program: the words that call it (``ccache g++``).
        options: that whoever named it wants besides; they come last, and therefore win.
    """

    program: tuple[str, ...]
    options: tuple[str, ...] = ()

    @classmethod
    def find(cls) -> "Compiler":
        """``c++``, or what CXX names, as in ``CXX="ccache g++"`` or ``CXX="clang++ -O1 -g"``.

        Raises:
            BuildError: there is none.
        """
        try:
            words = shlex.split(os.environ.get("CXX", "")) or ["c++"]
        except ValueError as error:
            raise BuildError(f"CXX cannot be read ({error})") from None
        length = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
        program, options = tuple(words[:length]), tuple(words[length:])
        if not program or shutil.which(program[0]) is None:
            raise BuildError("there is no C++ compiler (c++, or what CXX names)")
        return cls(program, options)

    def identity(self) -> str:
        """Another one after every upgrade, without asking the compiler."""
        words = [*self.program, *self.options]
        for path in filter(None, map(shutil.which, self.program)):
            found = os.stat(path)
            words.append(f"{os.path.realpath(path)} {found.st_size} {found.st_mtime_ns}")
        return " ".join(words)

    def __str__(self) -> str:
        return shlex.join([*self.program, *self.options])


def sources_hash(folder: Path = SOURCES) -> str:
    """Of all that the library is made of: the sources, and how they are compiled."""
    key = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted([*folder.rglob("*.h"), *folder.rglob("*.cpp")]):
        key.update(f"\n{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return key.hexdigest()[:16]


def for_this_processor() -> tuple[str, ...]:
    """The flags for code that need run on this machine alone."""
    return ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)


def compile_library(compiler: Compiler, flags: Sequence[str], target: Path, folder: Path = SOURCES) -> None:
    """Compile every source below ``folder`` and link them into ``target``, beside which scratch files come and go.

    Raises:
        BuildError: the compiler failed.
        OSError: the disk is full, or what is beside ``target`` cannot be written.
    """
    options = (*FLAGS, *flags, f"-I{folder}", *compiler.options)
    sources = sorted(folder.rglob("*.cpp"), key=lambda path: -path.stat().st_size)  # the longest first
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as scratch:
        objects = [f"{scratch}/{number}.o" for number in range(len(sources))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [(*options, "-c", str(path), "-o", made) for path, made in zip(sources, objects, strict=True)]
            list(pool.map(lambda job: _run(compiler, job, scratch), jobs))
        part = f"{scratch}/{target.name}"
        _run(compiler, (*options, "-shared", *objects, "-o", part), scratch)
        os.chmod(part, 0o700)  # whatever the umask allows others
        os.replace(part, target)


def _run(compiler: Compiler, arguments: Sequence[str], scratch: str) -> None:
    command = [*compiler.program, *arguments]
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": scratch}
    try:
        subprocess.run(
            command, check=True, capture_output=True, timeout=TIMEOUT_SECONDS, env=environment, stdin=subprocess.DEVNULL
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace")
        for reason, number in _DISK.items():
            if reason in said:
                raise OSError(number, reason, scratch) from None
        ended = f"signal {-error.returncode}" if error.returncode < 0 else f"exit code {error.returncode}"
        lines = said.strip().splitlines() or [ended]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise BuildError(f"{shlex.join(compiler.program)} failed: {reason.strip()}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{shlex.join(compiler.program)} took more than {TIMEOUT_SECONDS} s") from None
    except OSError as error:
        raise BuildError(f"{shlex.join(compiler.program)} cannot be run: {error.strerror}") from None
