"""Writing NumPy arrays to files so that a full disk is reported.

``tofile``, and so ``save`` to an open file, write through a buffer of C whose last part can be lost without a word.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np


class _Writes:
    """A file of which NumPy knows nothing but ``write``."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def write_array(path: Path, array: np.ndarray) -> None:
    """``array`` as an ``.npy`` file."""
    with path.open("wb") as file:
        np.save(_Writes(file), array, allow_pickle=False)  # pyright: ignore[reportArgumentType, reportCallIssue]
