"""The stream of a best-fit plan: made an epoch at a time when it is first asked for, in memory or in mapped files.

The plan of an epoch takes 20 bytes a piece, and follows from the settings and from the epochs before. In files it is
made once for all processes and all resumptions of a run, and memory does not grow with the corpus; whoever finishes
first puts it in place, and the others made the same. Files that are not what was written are made again.
"""

import hashlib
import json
import os
import tempfile
import threading
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from leyden.core.files import disk_errors_are_user_errors
from leyden.core.log import say
from leyden.data.loader.best_fit import WINDOW_SEQUENCES, plan_epoch
from leyden.data.loader.pieces import PIECE, Pieces
from leyden.data.marks import read_mark, write_mark
from leyden.data.shards import TokenShards

_COUNT = np.dtype("<i8")
_MARK = "epoch.json"
"""The mark of an epoch's files."""
_REMEMBERED_EPOCHS = 2  # a batch lies in one epoch or across the border of two


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The sequences of one epoch.

    Attributes:
        pieces: [P] of PIECE.
        bounds: [sequences + 1] int64, the first piece of each.
        pending: [O] of PIECE, what the next epoch begins with.
    """

    pieces: np.ndarray
    bounds: np.ndarray
    pending: np.ndarray


class BestFit:
    """An endless stream of sequences packed by best fit.

    Args:
        shards: the documents.
        seq_len: tokens of a sequence.
        seed: of the order.
        max_padding: the share of a window's tokens that padding may take before documents are cut.
        plans: a directory for the plans of all runs, or None to hold them in memory.
    """

    def __init__(
        self, shards: TokenShards, *, seq_len: int, seed: int, max_padding: float = 0.01, plans: Path | None = None
    ) -> None:
        self.shards = shards
        self.seq_len = seq_len
        self._seed = seed
        self._max_padding = max_padding
        settings = {
            "packing": "best_fit",
            "shards": shards.fingerprint,
            "seq_len": seq_len,
            "seed": seed,
            "max_padding": max_padding,
            "window": WINDOW_SEQUENCES,
        }
        self.fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self._directory = None if plans is None else plans / self.fingerprint[:16]
        self._lock = threading.Lock()
        self._sequences = [0]  # before each epoch that was planned, and after the last
        self._tokens = [0]  # likewise
        self._pending = [np.empty(0, PIECE)]  # what each epoch begins with
        self._plan = lru_cache(maxsize=_REMEMBERED_EPOCHS)(self._make)

    def pieces(self, first: int, count: int) -> Pieces:
        """What ``count`` sequences from number ``first`` on hold."""
        parts = []
        while count:
            plan, start = self._find(first)
            taken = min(count, len(plan.bounds) - 1 - start)
            bounds = np.asarray(plan.bounds[start : start + taken + 1])
            parts.append(Pieces(np.asarray(plan.pieces[bounds[0] : bounds[-1]]), bounds - bounds[0]))
            first, count = first + taken, count - taken
        return Pieces.join(parts)

    def tokens_before(self, sequence: int) -> int:
        """Tokens of documents, padding not counted, in all sequences before number ``sequence``."""
        if not sequence:
            return 0
        plan, start = self._find(sequence)
        epoch = bisect_right(self._sequences, sequence) - 1
        return self._tokens[epoch] + int(plan.pieces["length"][: plan.bounds[start]].sum(dtype=np.int64))

    def _find(self, sequence: int) -> tuple[EpochPlan, int]:
        """The plan that ``sequence`` is in, and its number in it."""
        with self._lock:
            while self._sequences[-1] <= sequence:
                self._plan(len(self._pending) - 1)
            epoch = bisect_right(self._sequences, sequence) - 1
            return self._plan(epoch), sequence - self._sequences[epoch]

    def _make(self, epoch: int) -> EpochPlan:
        if self._directory is None:
            plan = self._in_memory(epoch)
        else:
            folder = self._directory / f"epoch-{epoch:06d}"
            plan = _read(folder)
            if plan is None:
                if folder.exists():
                    say(f"{folder} is not what was written; it is made again")
                self._write(epoch, folder)
                plan = _read(folder)
            assert plan is not None, "what was just written is whole"
        if epoch == len(self._pending) - 1:
            self._sequences.append(self._sequences[-1] + len(plan.bounds) - 1)
            self._tokens.append(self._tokens[-1] + int(plan.pieces["length"].sum(dtype=np.int64)))
            self._pending.append(np.array(plan.pending))
        return plan

    def _in_memory(self, epoch: int) -> EpochPlan:
        windows = list(self._windows(epoch))
        counts = np.concatenate([window.counts for window in windows])
        bounds = np.cumsum([0, *counts.tolist()])
        return EpochPlan(np.concatenate([window.pieces for window in windows]), bounds, windows[-1].pending)

    def _write(self, epoch: int, folder: Path) -> None:
        """A window at a time, in a folder of this process's own, which becomes ``folder`` unless that is there now."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors_are_user_errors(folder), tempfile.TemporaryDirectory(dir=folder.parent) as parent:
            part = Path(parent) / "plan"
            part.mkdir()
            self._fill(epoch, part)
            if _read(folder) is None:  # of what is damaged, another process may be getting rid, too
                with suppress(FileNotFoundError):
                    os.rename(folder, Path(parent) / "damaged")
            try:
                os.rename(part, folder)
            except OSError:
                if not folder.exists():
                    raise

    def _fill(self, epoch: int, part: Path) -> None:
        num_pieces = num_sequences = 0
        pending = np.empty(0, PIECE)
        with (part / "pieces").open("wb") as pieces, (part / "bounds").open("wb") as bounds:
            bounds.write(np.zeros(1, _COUNT).data)
            for window in self._windows(epoch):
                pieces.write(window.pieces.data)
                bounds.write((num_pieces + np.cumsum(window.counts)).astype(_COUNT).data)
                num_pieces += len(window.pieces)
                num_sequences += len(window.counts)
                pending = window.pending
        (part / "pending").write_bytes(pending.data)
        files = [part / name for name in ("pieces", "bounds", "pending")]
        for file in files:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        sizes = {"pieces": num_pieces, "sequences": num_sequences, "pending": len(pending)}
        write_mark(part / _MARK, files, sizes)

    def _windows(self, epoch: int):
        return plan_epoch(
            self.shards,
            seq_len=self.seq_len,
            seed=self._seed,
            epoch=epoch,
            pending=self._pending[epoch],
            max_padding=self._max_padding,
        )


def _read(folder: Path) -> EpochPlan | None:
    """The plan in a folder; None where there is none, or it is not what was written."""
    mark = read_mark(folder / _MARK)
    if mark is None or mark.fault() is not None:
        return None
    return EpochPlan(
        _map(folder / "pieces", PIECE, mark.facts["pieces"]),
        _map(folder / "bounds", _COUNT, mark.facts["sequences"] + 1),
        _map(folder / "pending", PIECE, mark.facts["pending"]),
    )


def _map(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype, mode="r")) if length else np.empty(0, dtype)
