"""Ctrl-C and SIGTERM as a request that a long job reads when it is ready."""

import signal
import threading
from types import FrameType
from typing import Self

from leyden.core.log import console


class StopRequest:
    """While entered, Ctrl-C and SIGTERM set :attr:`made` and interrupt nothing. Entered outside the main thread,
    where Python handles no signals, it changes nothing."""

    def __init__(self) -> None:
        self.made = False
        self._before: dict[signal.Signals, signal._HANDLER] = {}

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
        console.print(f"{signal.Signals(number).name}: finishing this step, then saving.")
