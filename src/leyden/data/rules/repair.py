"""Repair of Unicode: text decoded by the wrong encoding, control characters, normal form."""

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from leyden.data.documents import Documents
from leyden.data.rules.base import Rules, rewrite_chosen

if TYPE_CHECKING:
    from ftfy import TextFixerConfig

REPAIRED = "repaired_lines"
"""The score that counts the lines of a document that the stage changed; no score where none was."""

Form = Literal["NFC", "NFKC", "NFD", "NFKD", "none"]

_HARMLESS = re.compile(r"[\t\n\x20-\x7e]*")  # what no repair changes


class Unicode(Rules):
    """Repair text with ftfy and bring it to a normal form; the score ``repaired_lines`` says how many lines changed.

    Repaired are: text that was decoded by the wrong encoding (``schÃ¶n``), stray C1 controls, terminal escapes; control
    and other invisible characters that mean nothing in text, and byte order marks, are removed. Quotes, ligatures and
    the width of characters stay as they are, as a model should know them. Line ends become line feeds. Nothing is
    dropped.
    """

    TITLE: ClassVar[str] = "unicode"
    kind: Literal["unicode"] = "unicode"

    encoding: bool = True
    """Undo wrong decodings, where ftfy's heuristic is sure."""
    html_entities: bool = False
    """Replace ``&amp;`` and the like in lines without ``<``; text from HTML has none left, and documentation of HTML
    means them."""
    form: Form = "NFC"
    """The normal form (Unicode Standard Annex 15)."""

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Rewrite texts and messages."""
        chosen = self.chosen(documents)
        before = documents.texts()
        repaired = rewrite_chosen(documents, chosen, lambda texts: [self.repair(text) for text in texts])
        changed = [_changed_lines(a, b) for a, b in zip(before, repaired.texts(), strict=True)]
        return repaired.score(REPAIRED, changed) if any(changed) else repaired

    def repair(self, text: str) -> str:
        """One text, line by line: lines of plain ASCII, which are most, need no look by ftfy."""
        if _HARMLESS.fullmatch(text) and not (self.html_entities and "&" in text):
            return text
        import ftfy

        config = _config(self.encoding, self.html_entities, self.form)
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return "\n".join(
            line
            if _HARMLESS.fullmatch(line) and not (self.html_entities and "&" in line)
            else ftfy.fix_text(line, config)
            for line in lines
        )


@functools.lru_cache(8)
def _config(encoding: bool, html_entities: bool, form: Form) -> "TextFixerConfig":
    from ftfy import TextFixerConfig

    return TextFixerConfig(
        unescape_html="auto" if html_entities else False,
        fix_encoding=encoding,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        normalization=None if form == "none" else form,
    )


def _changed_lines(before: str, after: str) -> int | None:
    """Lines that differ, None where none does; repair keeps the number of lines but for lone carriage returns."""
    if before == after:
        return None
    old, new = before.split("\n"), after.split("\n")
    return sum(a != b for a, b in zip(old, new, strict=False)) + abs(len(old) - len(new))
