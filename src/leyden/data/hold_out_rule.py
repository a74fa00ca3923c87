"""Which documents are held out: the one rule of the stage ``hold_out``, of text that a run reads, and of token files.

Each document has a number that is uniform in [0, 1) and depends on nothing but its content; it is held out if that
number is below the share. Adding, removing or moving other documents changes nothing for it. Only if this would hold
out no document, or leave none, is the border moved, so that one document is held out, or one is left.
"""

import hashlib
import math


def draw(content: bytes) -> float:
    """The number of a document: uniform in [0, 1), by the content alone."""
    digest = hashlib.blake2b(content, digest_size=8, person=b"hold_out").digest()
    return int.from_bytes(digest, "big") / 2**64


def border(share: float, smallest: float, largest: float) -> float:
    """Documents whose number is below this are held out.

    Args:
        share: above 0 and below 1.
        smallest, largest: of the numbers of all documents, of which there are two different ones at least.
    """
    if smallest >= share:
        return math.nextafter(smallest, 1)
    return min(share, largest)
