"""Which documents are held out: the one rule of the stage ``hold_out``, of text that a run reads, and of token files.

Each document has a number that is uniform in [0, 1) and depends on nothing but its content; it is held out if that
number is below the share. Adding, removing or moving other documents changes nothing for it.
"""

import hashlib

import numpy as np


def draw(content: bytes) -> float:
    """The number of a document: uniform in [0, 1), by the content alone."""
    digest = hashlib.blake2b(content, digest_size=8, person=b"hold_out").digest()
    return int.from_bytes(digest, "big") / 2**64


def held_out(draws: np.ndarray, share: float) -> np.ndarray:
    """Which of all documents of a corpus are held out, where some must be and some must not.

    If the rule holds out none, the document with the smallest number is; if it holds out all, the one with the largest
    is not.

    Args:
        draws: [D] float64, the number of each document, at least two.
        share: above 0 and below 1.

    Returns:
        [D] bool.
    """
    chosen = draws < share
    if not chosen.any():
        chosen[np.argmin(draws)] = True
    if chosen.all():
        chosen[np.argmax(draws)] = False
    return chosen
