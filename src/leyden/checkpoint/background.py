"""Asynchronous checkpoints: weights are copied to host memory, and a thread writes the files while training goes on."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from leyden.checkpoint.pieces import TensorPiece


class Background:
    """One save at a time. Its exchanges between ranks go over the coordinator's own group, never over training's."""

    def __init__(self) -> None:
        # Not a daemon: a process that ends lets the save end first.
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._host: dict[str, torch.Tensor] = {}
        self._pending: Future[object] | None = None

    @property
    def pending(self) -> bool:
        """Whether a save was started that nobody has waited for."""
        return self._pending is not None

    @property
    def running(self) -> bool:
        """Whether it is still being written."""
        return self._pending is not None and not self._pending.done()

    @property
    def failed(self) -> bool:
        """Whether it has ended in an error."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def start(self, pieces: Mapping[str, TensorPiece], save: Callable[[dict[str, TensorPiece]], object]) -> None:
        """Copy ``pieces``, then call ``save`` with the copies while the caller goes on.

        Raises:
            Exception: what the save before this one failed at.
        """
        self.wait()
        copies = {name: TensorPiece(self._copied(name, piece.tensor), piece.part) for name, piece in pieces.items()}
        on_gpu = any(piece.tensor.is_cuda for piece in pieces.values())
        copied = torch.cuda.current_stream().record_event() if on_gpu else None

        def run() -> None:
            if copied is not None:
                copied.synchronize()
            save(copies)

        self._pending = self._thread.submit(run)

    def wait(self) -> None:
        """Until the save, if there is one, is on the disk.

        Raises:
            Exception: what it failed at.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _copied(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` in host memory that is kept for the next save; of a GPU's, once its stream has come so far."""
        if name not in self._host:
            self._host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return self._host[name].copy_(tensor, non_blocking=True)
