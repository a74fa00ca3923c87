"""Documents kept away from training, to evaluate on."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from leyden.data.documents import Documents
from leyden.data.hold_out_rule import draw
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
        return documents.drop([HELD_OUT if draw(text.encode()) < self.share else None for text in documents.texts()])
