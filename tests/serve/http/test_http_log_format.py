"""The forms of a server's log, and what ``leyden serve`` says before it serves."""

import json
import logging
import re
from pathlib import Path

import pytest

import leyden.cli.serve as cli
from leyden.serve.http.request_log import JsonLines, TimedLines, log_as


def record(message: str, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("leyden.test", logging.INFO, __file__, 1, message, (), None)
    made.__dict__.update(more)
    return made


def test_lines_begin_with_the_time() -> None:
    line = TimedLines().format(record("GET / 200"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d GET / 200", line)


def test_json_has_the_facts_a_line_each() -> None:
    line = JsonLines().format(record('two\nlines "☂"', facts={"status": 400, "param": "a\x1b"}))
    assert "\n" not in line and line.isascii()
    told = json.loads(line)
    assert (told["level"], told["logger"], told["message"]) == ("info", "leyden.test", 'two\nlines "☂"')
    assert (told["status"], told["param"]) == (400, "a\x1b")
    try:
        raise KeyError("why")
    except KeyError as error:
        failed = record("failed", exc_info=(KeyError, error, error.__traceback__))
    assert "KeyError: 'why'" in json.loads(JsonLines().format(failed))["exception"]


def test_the_log_of_a_process(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        log_as("json")
        root.handlers[0].emit(record("said"))
        assert json.loads(capsys.readouterr().err)["message"] == "said"
        root.handlers = [logging.StreamHandler()]
        log_as("text")
        assert isinstance(root.handlers[0].formatter, TimedLines)
    finally:
        root.handlers = before


def test_a_model_is_called_by_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("runs/mine/final", "runs/mine/checkpoints/step_00000010", "models/small"):
        (tmp_path / path).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / "mine")
    names = {"final": "mine", ".": "mine", "checkpoints/step_00000010": "mine", "../../models/small/": "small"}
    assert {given: cli._name_of(given) for given in names} == names
    assert cli._name_of("MiniMaxAI/MiniMax-Text-01") == "MiniMax-Text-01"


def test_a_key_file_that_others_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text("one\ntwo\n")
    for mode, warned in ((0o600, False), (0o640, True), (0o604, True)):
        path.chmod(mode)
        caplog.clear()
        assert cli._keys(path) == ["one", "two"]
        assert ("can be read by others" in caplog.text) == warned
        assert "one" not in caplog.text
