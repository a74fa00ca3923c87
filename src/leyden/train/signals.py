"""Ctrl-C and SIGTERM as a request to stop that long work polls when it is ready."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any, Self


class StopRequest:
    """While entered, Ctrl-C and SIGTERM set :attr:`made` and interrupt nothing. Entered outside the main thread,
    where Python handles no signals, it changes nothing."""

    def __init__(self) -> None:
        self.made = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.made = True
        # Not through a console or logger: the signal may have come in the midst of a line of theirs.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{signal.Signals(number).name}: finishing this step, then saving.\n".encode())
