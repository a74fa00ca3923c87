"""The log of a server: lines for people, with the time where nobody else writes it, or a JSON object a line."""

import json
import logging
import sys
from datetime import datetime
from typing import Literal

LogFormat = Literal["text", "json"]


def log_as(form: LogFormat) -> None:
    """Let all that is logged from now on have this form, on standard error.

    As text it has the time in front (ISO 8601), unless standard error is a terminal.
    """
    root = logging.getLogger()
    if form == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        root.handlers = [handler]
    elif not sys.stderr.isatty():
        for handler in root.handlers:
            handler.setFormatter(TimedLines())


class TimedLines(logging.Formatter):
    """The message behind the time."""

    def format(self, record: logging.LogRecord) -> str:
        """``record`` as text."""
        return f"{_time(record)} {super().format(record)}"


class JsonLines(logging.Formatter):
    """An object a line: ``time``, ``level``, ``logger`` and ``message``, and the facts that a record has besides."""

    def format(self, record: logging.LogRecord) -> str:
        """``record`` as JSON."""
        line = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage(), **getattr(record, "facts", {})}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
