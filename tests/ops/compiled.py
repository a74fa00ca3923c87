"""What a compiled kernel takes of a GPU that is not there: registers, memory, residency, and loads that overlap.

All of it is read from what the compiler leaves: the binary (through the assembler's own report), the metadata, and the
intermediate form in which the order of loads and products is fixed (TTGIR).
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton


@dataclass(frozen=True)
class Multiprocessor:
    """What one holds at once; registers, and 64 warps and 32 programs, are the same on all that are here."""

    shared_bytes: int
    registers: int = 65536
    warps: int = 64
    programs: int = 32
    tensor_memory_columns: int = 512


MULTIPROCESSORS = {80: Multiprocessor(164 << 10), 90: Multiprocessor(228 << 10), 100: Multiprocessor(228 << 10)}

_RESERVED_BYTES = 1024
"""Shared memory that the system takes of every program."""


@dataclass(frozen=True)
class Facts:
    """What one compiled kernel takes.

    Attributes:
        registers: of a thread; 255 is the most there can be.
        spilled: bytes of a thread that do not fit them.
        shared: bytes of a program.
        warps: of a program.
        resident: programs that a multiprocessor holds at once.
        ahead: chunks of loads that are under way while a loop's products run, counted at the product that has fewest;
            None without such a loop. Below 1, products wait for loads that were issued after the ones before them.
        exposed: loads within that loop whose result is waited for at once.
    """

    registers: int
    spilled: int
    shared: int
    warps: int
    resident: int
    ahead: float | None
    exposed: int

    @classmethod
    def of(cls, compiled: Any, architecture: int) -> "Facts":
        """Of what ``triton.compile`` gives."""
        registers, spilled = _assembled(compiled.asm["cubin"])
        metadata = compiled.metadata
        ahead, exposed = overlap(compiled.asm["ttgir"])
        columns = getattr(metadata, "tmem_size", 0) or 0
        resident = residency(MULTIPROCESSORS[architecture], registers, metadata.shared, metadata.num_warps, columns)
        return cls(registers, spilled, metadata.shared, metadata.num_warps, resident, ahead, exposed)


def residency(of: Multiprocessor, registers: int, shared: int, warps: int, columns: int = 0) -> int:
    """Programs that fit a multiprocessor: a warp gets registers by 256, a program memory beside what is reserved."""
    of_warp = -(-registers * 32 // 256) * 256
    fit = [of.programs, of.warps // warps, of.registers // (of_warp * warps)]
    fit.append(of.shared_bytes // (shared + _RESERVED_BYTES))
    if columns:
        fit.append(of.tensor_memory_columns // columns)
    return min(fit)


def _assembled(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, from the assembler's own report."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = dict(part.split(":") for line in said.splitlines() if "REG:" in line for part in line.split())
    return int(found["REG"]), int(found["STACK"])


_PRODUCT = re.compile(r"= tt\.dot |warp_group_dot |tc_gen5_mma ")
_WAIT = re.compile(r"ttg\.async_wait .*\{num = (\d+)")
_COMMIT = re.compile(r"ttg\.async_commit_group")
_LOAD = re.compile(r"= tt\.load .*: tensor<")
_LOOP = re.compile(r"^(\s*)(?:%\S+ = )?scf\.(?:for|while)\b")


def overlap(ttgir: str) -> tuple[float | None, int]:
    """Chunks of loads under way during the products of the innermost loops that have any, and loads waited for there.

    A loop is followed for some iterations: a group of loads that is issued stays under way until a wait that leaves
    fewer. The fewest that any product sees, as a share of the groups of an iteration, is the answer.
    """
    ahead, exposed = None, 0
    for body in _innermost_loops(ttgir.splitlines()):
        if not any(_PRODUCT.search(line) for line in body):
            continue
        exposed += sum(bool(_LOAD.search(line)) for line in body)
        groups = sum(bool(_COMMIT.search(line)) for line in body)
        under_way, fewest = 0, 0
        for _ in range(8):  # more than there are stages
            fewest = 1 << 30
            for line in body:
                if waits := _WAIT.search(line):
                    under_way = min(under_way, int(waits[1]))
                elif _COMMIT.search(line):
                    under_way += 1
                elif _PRODUCT.search(line):
                    fewest = min(fewest, under_way)
        share = fewest / groups if groups else 0.0
        ahead = share if ahead is None else min(ahead, share)
    return ahead, exposed


def _innermost_loops(lines: list[str]) -> list[list[str]]:
    """The bodies of loops without loops in them; a loop ends where a line of its own indentation closes it."""
    bodies, opened = [], None
    for number, line in enumerate(lines):
        if (found := _LOOP.match(line)) is not None:
            opened = number, found[1]
        elif opened is not None and line.startswith(f"{opened[1]}}}"):
            bodies.append(lines[opened[0] + 1 : number])
            opened = None
    return bodies
