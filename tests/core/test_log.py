"""What goes to standard error, on a terminal and elsewhere."""

import io
import logging
import re

import pytest
from rich.console import Console

from leyden.core import log


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    monkeypatch.setattr(log, "console", Console(file=written, force_terminal=True, width=120))
    return written


def test_say_prints_the_line_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold] is no markup here, and " + "a long line stays one line " * 10
    log.say(line)
    printed = capsys.readouterr()
    assert printed.err == line + "\n"
    assert printed.out == ""


def test_progress_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with log.progress("counting", 3, "steps") as bar:
        bar.advance()
        bar.advance(2, note="done")
    assert capsys.readouterr() == ("", "")


def test_a_long_job_tells_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_LINE_SECONDS", 0)
    with log.progress("counting", 4, "steps") as bar:
        bar.advance(1, note="loss 2.0")
        bar.advance(2, note="loss 1.5")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("counting: 25 %")
    assert first.endswith("loss 2.0")
    assert second.startswith("counting: 75 %")
    assert second.endswith("loss 1.5")


def test_a_long_job_of_unknown_length_tells_its_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_LINE_SECONDS", 0)
    with log.progress("reading", None) as bar:
        bar.advance(1200)
    assert capsys.readouterr().err.startswith("reading: 1,200")


def test_a_terminal_gets_a_bar_with_its_note(terminal: io.StringIO) -> None:
    with log.progress("counting", 4, "steps") as bar:
        bar.advance(4, note="loss 1.5")
    shown = terminal.getvalue()
    assert all(part in shown for part in ("counting", "4/4", "loss 1.5"))


def last_line(written: io.StringIO) -> str:
    """What a bar shows at its end."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue()).strip().splitlines()[-1].rpartition("\r")[2]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_on_a_terminal_of_any_width_count_and_time_left_are_whole(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    written = io.StringIO()
    monkeypatch.setattr(log, "console", Console(file=written, force_terminal=True, width=width, _environ={}))
    with log.progress("training: a stage of a long name", 1452, "steps") as bar:
        bar.advance(726, note="loss 2.312, 10231 tokens/s")
        bar.advance(726)
    last = last_line(written)
    assert "1452/1452" in last
    assert "0:00:00" in last


def test_what_was_passed_over_is_done_too(terminal: io.StringIO) -> None:
    with log.progress("reading", 50) as bar:
        bar.advance(40)
    assert "100%" in terminal.getvalue()
    with pytest.raises(KeyError), log.progress("breaking", 50) as bar:
        bar.advance(40)
        raise KeyError
    assert "80%" in last_line(terminal)


def test_log_once_logs_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="leyden.test"):
        for _ in range(3):
            log.log_once("leyden.test", "a thing that a test says once")
    assert [record.message for record in caplog.records] == ["a thing that a test says once"]


@pytest.mark.parametrize(
    ("speed", "text"),
    [
        (None, ""),
        (3.21, "3.2 tokens/s"),
        (12_345, "12.3k tokens/s"),
        (2e6, "2.0M tokens/s"),
        (3e9, "3.0G tokens/s"),
    ],
)
def test_rates_read_well(speed: float | None, text: str) -> None:
    assert log._rate(speed, "tokens") == text


def test_a_record_is_one_line_wherever_it_goes(capsys: pytest.CaptureFixture[str], terminal: io.StringIO) -> None:
    record = logging.LogRecord("leyden", logging.INFO, "", 0, "[bold] %s", ("a long line stays one " * 10,), None)
    handler = log.LineHandler()
    handler.emit(record)
    assert "INFO" in terminal.getvalue()
    assert "[bold] " + "a long line stays one " * 10 in terminal.getvalue().splitlines()[0]
