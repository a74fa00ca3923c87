"""Which scripts a document is written in."""

import functools
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from leyden.data.rules.analysis import Analysis
from leyden.data.rules.base import Limit, RuleStage, fraction
from leyden.data.rules.characters import LETTER, code_points


class Script(RuleStage):
    """Drop documents of which too few letters are of the scripts to keep."""

    TITLE: ClassVar[str] = "script"
    kind: Literal["script"] = "script"

    keep: tuple[str, ...] = Field(min_length=1)
    """Unicode scripts by name or ISO 15924 code: ``Latin`` or ``Latn``, ``Han``, ``Cyrillic``, ``Hiragana``, ..."""
    min_share: float = Field(0.5, ge=0, le=1)
    """Share of letters; documents without letters are kept."""

    @field_validator("keep")
    @classmethod
    def _known(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        for name in keep:
            try:
                _members((name,))
            except ValueError:
                raise ValueError(f"'{name}' is no script of Unicode; names are Latin, Han, Cyrillic, ...") from None
        return keep

    def limits(self, analysis: Analysis) -> list[Limit]:
        """See :meth:`RuleStage.limits`."""
        letters = np.flatnonzero(analysis.has(LETTER))
        of_script = letters[_members(self.keep)[analysis.characters[letters]]]
        share = fraction(analysis.per_document(of_script), analysis.per_document(letters))
        return [Limit("letters of " + ", ".join(self.keep), share, least=self.min_share)]


@functools.lru_cache(8)
def _members(scripts: tuple[str, ...]) -> np.ndarray:
    """[0x110000] bool, the code points of any of the scripts."""
    members = np.zeros(0x110000, bool)
    for name in scripts:
        members[code_points(f"\\p{{Script={name}}}")] = True
    return members
