"""Text of others on a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.core import log
from leyden.core.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode 日本 🙂", "plain, ünïcode 日本 🙂"),
        ("\x1b]0;title\x07\x1b[31m", r"\x1b]0;title\x07\x1b[31m"),
        ("a\nb\tc\rd", r"a\x0ab\x09c\x0dd"),
        ("\x9b31m", r"\x9b31m"),
        ("user\u202egnp.exe", r"user\u202egnp.exe"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_what_steers_a_terminal_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_nothing_of_a_control_is_left(text: str) -> None:
    left = printable(text)
    left.encode()
    assert not [c for c in left if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert set(printable(text, lines=True)) - set(left) <= {"\n", "\t"}


def test_lines_and_log_records_go_through_it(capsys: pytest.CaptureFixture[str]) -> None:
    log.say("one\ntwo \x1b[31m")
    handler = log.LineHandler()
    handler.emit(log.logging.LogRecord("leyden", 20, "", 0, "name %s", ("\x1b[2J",), None))
    assert capsys.readouterr().err == "one\ntwo \\x1b[31m\nINFO     name \\x1b[2J\n"
