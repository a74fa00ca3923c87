"""Repair of Unicode: text decoded by the wrong encoding, control characters, normal form."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from leyden.data.documents import Documents
from leyden.data.rules.base import RuleStage, rewrite_chosen

if TYPE_CHECKING:
    import regex
    from ftfy import TextFixerConfig

REPAIRED = "repaired_lines"
"""The score that counts the lines of a document that the stage changed; no score where none was."""

Form = Literal["NFC", "NFKC", "NFD", "NFKD", "none"]

_HARMLESS = re.compile(r"[\t\n\x20-\x7e]*")  # what no repair changes


class Unicode(RuleStage):
    """Repair text with ftfy and bring it to a normal form; the score ``repaired_lines`` says how many lines changed.

    Repaired are text that was decoded by the wrong encoding (``schÃ¶n``), stray C1 controls and terminal escapes. A
    capital before a closing mark, as in ``“IRMÃ”``, is left as it is, unless most of the text and all of its line was
    wrongly decoded. Control and other invisible characters that mean nothing in text are removed, and byte order
    marks. Quotes, ligatures and the width of characters stay as they are, as a model should know them. Line ends become
    line feeds. Nothing is dropped.
    """

    TITLE: ClassVar[str] = "unicode"
    VERSION: ClassVar[int] = 2
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
        if self._needs_none(text):
            return text
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        done = [line if self._needs_none(line) else self._repair_line(line) for line in lines]
        if self.encoding:
            self._repair_doubtful(lines, done)
        return "\n".join(done)

    def _needs_none(self, text: str) -> bool:
        return _HARMLESS.fullmatch(text) is not None and not (self.html_entities and "&" in text)

    def _repair_line(self, line: str) -> str:
        import ftfy
        from ftfy.fixes import unescape_html

        if self.html_entities and "<" not in line:
            line = unescape_html(line)
        return ftfy.fix_text(_decoded_anew(line) if self.encoding else line, _config(self.form))

    def _repair_doubtful(self, lines: Sequence[str], done: list[str]) -> None:
        """Repair whole lines with doubtful ends of words, if most of the text was wrongly decoded, and all of the line.

        Args:
            lines: as they were.
            done: what :meth:`_repair_line` made of them; changed.
        """
        doubtful: list[int] = []
        wrong = sound = 0
        for number, (line, made) in enumerate(zip(lines, done, strict=True)):
            if line.isascii():
                continue
            is_wrong = _is_recoded(line, made)
            wrong += is_wrong
            if _doubtful().search(line):
                doubtful.append(number)
            else:
                sound += not is_wrong
        for number in doubtful if wrong > sound else ():
            once = _decoded_once(lines[number], whole=True)
            if once != lines[number]:
                done[number] = self._repair_line(once)


def _decoded_anew(line: str) -> str:
    """A line with wrong decodings undone, one after the other; ends of words apart from the marks behind them."""
    while True:
        once = "".join(map(_decoded_once, _doubtful().split(line)))
        if once == line:
            return line
        line = once


def _decoded_once(text: str, whole: bool = False) -> str:
    """Text with one wrong decoding undone: of all its characters, or else (unless ``whole``) of those that show it."""
    import ftfy

    if text.isascii():
        return text
    _, steps = ftfy.fix_encoding_and_explain(text)
    if not steps or (whole and steps[0].action != "encode"):
        return text
    plan = [(step.action, step.parameter) for step in steps]
    actions = [action for action, _ in plan]
    return ftfy.apply_plan(text, plan[: actions.index("decode") + 1 if actions[0] == "encode" else 1])


@functools.cache
def _doubtful() -> "regex.Pattern[str]":
    """Matches, without a character, between a capital that a word may end with and a mark that may follow it.

    In UTF-8 taken for Windows-1252 these two are another letter: ``Ô`` becomes ``Ã”``, as in ``“IRMÃ” em``. Within a
    word, or behind a small letter, no such pair is sound.
    """
    import regex

    quotes = "”’»›“‘«‹„‚…"
    marks = quotes + "–—™®©°ºª¹²³†‡·¨´¯¸"
    capital = r"(?<=\p{Lu})(?<!\p{Ll}\p{M}*\p{Lu})(?<![\x00-\x7f])"
    return regex.compile(
        rf"{capital}(?=[{quotes}][{marks}]*+(?![\p{{L}}\p{{N}}]))"
        rf"|{capital}(?<=\p{{Lu}}\p{{Lu}})(?=[ \xa0?—]|[{marks}]++(?![\p{{L}}\p{{N}}]))"
        rf"|(?<=\p{{Ll}})(?<![\x00-\x7f])(?=[{quotes}][{marks}]++(?![\p{{L}}\p{{N}}]))"
    )


def _is_recoded(line: str, made: str) -> bool:
    """Whether repair decoded some of a line anew: that makes it shorter, where a normal form or control may too."""
    return made != line and sum(not c.isascii() for c in made) < sum(not c.isascii() for c in line)


@functools.cache
def _config(form: Form) -> "TextFixerConfig":
    """All repairs but those of the encoding, which are made before."""
    from ftfy import TextFixerConfig

    return TextFixerConfig(
        unescape_html=False,
        fix_encoding=False,
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
