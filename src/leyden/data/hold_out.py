"""Documents kept away from training, to evaluate on."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field

from leyden.data.documents import Documents
from leyden.data.stage import Stage

HELD_OUT = "held out"
"""The reason that these documents leave with; a run evaluates on them."""


class HoldOut(Stage):
    """Take documents out by a hash of their text: the same ones whatever else is in the corpus.

    It belongs after deduplication, so that no copy of a document that is held out is trained on.
    """

    kind: Literal["hold_out"] = "hold_out"
    share: float = Field(default=0.01, gt=0, lt=1)
    """Of the documents that come to this stage."""

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Drop the chosen ones with the reason ``held out``."""
        return documents.drop([HELD_OUT if _draw(text) < self.share else None for text in documents.texts()])


def _draw(text: str) -> float:
    """Uniform in [0, 1), by the content alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"hold_out").digest()
    return int.from_bytes(digest, "big") / 2**64
