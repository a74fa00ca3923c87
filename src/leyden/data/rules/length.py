"""How long a document may be."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from leyden.data.rules.analysis import Analysis
from leyden.data.rules.base import Limit, RuleStage

_NO_END = 1 << 62


class Length(RuleStage):
    """Drop what is too short or too long; put it first where single documents may be huge."""

    TITLE: ClassVar[str] = "length"
    kind: Literal["length"] = "length"

    min_characters: int = Field(0, ge=0)
    """Documents of fewer code points are dropped."""
    max_characters: int = _NO_END
    """Documents of more code points are dropped."""
    min_words: int = Field(0, ge=0)
    """Documents of fewer words are dropped. A word stands between white space, or is a character of a script without
    spaces."""
    max_words: int = _NO_END
    """Documents of more words are dropped."""
    min_bytes: int = Field(0, ge=0)
    """Documents of fewer UTF-8 bytes are dropped."""
    max_bytes: int = _NO_END
    """Documents of more UTF-8 bytes are dropped."""

    def limits(self, analysis: Analysis) -> list[Limit]:
        """See :meth:`RuleStage.limits`."""
        texts = analysis.texts
        limits = [
            Limit("characters", np.array([len(t) for t in texts], float), self.min_characters, self.max_characters),
            Limit("bytes", np.array([len(t.encode()) for t in texts], float), self.min_bytes, self.max_bytes),
        ]
        if self.min_words or self.max_words < _NO_END:
            limits.append(Limit("words", analysis.sums(analysis.words.document), self.min_words, self.max_words))
        return limits
