"""How long a document may be."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from leyden.data.rules.analysis import Analysis
from leyden.data.rules.base import Limit, Rules

_NO_END = 1 << 62


class Length(Rules):
    """Drop what is too short or too long; put it first where single documents may be huge."""

    TITLE: ClassVar[str] = "length"
    kind: Literal["length"] = "length"

    min_characters: int = Field(0, ge=0)
    """Code points."""
    max_characters: int = _NO_END
    """Code points."""
    min_words: int = Field(0, ge=0)
    """Words as :mod:`leyden.data.rules.analysis` counts them."""
    max_words: int = _NO_END
    """Words."""
    min_bytes: int = Field(0, ge=0)
    """UTF-8 bytes."""
    max_bytes: int = _NO_END
    """UTF-8 bytes."""

    def limits(self, analysis: Analysis) -> list[Limit]:
        """See :meth:`Rules.limits`."""
        texts = analysis.texts
        limits = [
            Limit("characters", np.array([len(t) for t in texts], float), self.min_characters, self.max_characters),
            Limit("bytes", np.array([len(t.encode()) for t in texts], float), self.min_bytes, self.max_bytes),
        ]
        if self.min_words or self.max_words < _NO_END:
            limits.append(Limit("words", analysis.sums(analysis.words.document), self.min_words, self.max_words))
        return limits
