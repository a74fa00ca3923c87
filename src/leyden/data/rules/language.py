"""Which language a document is in: py3langid, whose model is in the package, so that nothing is downloaded."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from leyden.core.errors import UserError, suggest
from leyden.data.documents import Documents
from leyden.data.rules.base import Limit, RuleStage, empty_verdicts

CONFIDENCE = "language"
"""The score that holds the classifier's confidence, from 0 to 1."""


class Language(RuleStage):
    """Set the column ``language`` and the score ``language``; drop other languages, or unsure ones, if asked.

    Of a long document some pieces are read, evenly spread, so that menus and licences at its ends do not decide.
    A document without letters has no language.
    """

    TITLE: ClassVar[str] = "language"
    kind: Literal["language"] = "language"

    keep: tuple[str, ...] = ()
    """ISO 639-1 codes; empty: all languages."""
    min_confidence: float = Field(0.65, ge=0, le=1)
    """The classifier's probability of its answer; 0.65 is FineWeb's (arXiv 2406.17557, section 3.3), for another
    classifier. Asked only if ``keep`` is given."""
    among: tuple[str, ...] = ()
    """The languages to choose among: makes short and technical texts surer; empty: all of the model."""
    pieces: int = Field(4, ge=1)
    """How many pieces of a long document are read."""
    piece_characters: int = Field(500, ge=20)
    """Their length; a document of up to ``pieces`` times this is read whole."""

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Label, then judge."""
        rows = np.flatnonzero(self.chosen(documents))
        texts, languages = documents.texts(), documents.column("language")
        confidence = np.full(len(documents), np.nan)
        for row in rows:
            languages[row], confidence[row] = self.identify(texts[row])
        labelled = documents.with_column("language", languages)
        labelled = labelled.score(CONFIDENCE, np.where(np.isnan(confidence), documents.scores(CONFIDENCE), confidence))
        if not self.keep:
            return labelled
        reasons, details = empty_verdicts(len(documents))
        self.judge(self._limits([languages[row] for row in rows], confidence[rows]), rows, reasons, details)
        return labelled.drop(reasons, details)

    def _limits(self, languages: Sequence[str | None], confidence: np.ndarray) -> list[Limit]:
        other = np.array([language not in self.keep for language in languages], float)
        pairs = zip(languages, confidence, strict=True)
        names = [f"{language}, {sure:.3f} sure" if language else "no letters" for language, sure in pairs]
        return [
            Limit("not among those to keep", other, most=0, found=names, allowed="kept: " + ", ".join(self.keep)),
            Limit("unsure", confidence, least=self.min_confidence, found=names),
        ]

    def sample(self, text: str) -> str:
        """The pieces of a text that are read."""
        if len(text) <= self.pieces * self.piece_characters:
            return text
        begins = np.linspace(0, len(text) - self.piece_characters, self.pieces + 2)[1:-1].astype(int)
        return "\n".join(text[begin : begin + self.piece_characters] for begin in begins)

    def identify(self, text: str) -> tuple[str | None, float]:
        """Language and confidence of one text; None and NaN where there is no letter."""
        part = self.sample(text)
        if not any(map(str.isalpha, part)):
            return None, float("nan")
        language, confidence = _classifier(self.among, self.keep).classify(part)
        return str(language), float(confidence)


@functools.lru_cache(2)
def _classifier(among: tuple[str, ...], keep: tuple[str, ...]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    classifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = {str(language) for language in classifier.nb_classes}
    for code in (*among, *keep):
        if code not in known:
            raise UserError(f"language: '{code}' is not known to the classifier{suggest(code, known)}.")
    if among:
        classifier.set_languages(list(among))
    return classifier
