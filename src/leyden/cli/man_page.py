"""The manual page ``leyden.1``, made of the command line itself: ``python -m leyden.cli.man_page [FILE]``.

It has every verb with its arguments and options, as ``--help`` has them, in the macros of man(7). Packagers run this
while they build, and anybody can for the version that is installed.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leyden import __version__

_STATUS = {
    "0": "All went well.",
    "1": "A defect of Leyden; what is printed belongs into a report of it.",
    "2": "A mistake in what was given; a paragraph says what is allowed.",
    "130": "Stopped by Ctrl-C or a signal; what is needed to go on was kept, and a line says how.",
}


def man_page() -> str:
    """The page, in roff."""
    from typer.main import get_command

    from leyden.cli.app import app

    root = get_command(app)
    verbs = list(_verbs(root, "leyden"))
    lines = [
        f'.TH LEYDEN 1 "" "Leyden {__version__}" "User Commands"',
        ".SH NAME",
        f"leyden \\- {_text(_first(root.help))}",
        ".SH SYNOPSIS",
        "\\fBleyden\\fR \\fIVERB\\fR [\\fIARGUMENTS\\fR] [\\fIOPTIONS\\fR]",
        ".SH DESCRIPTION",
        _text(f"Verbs: {', '.join(path.removeprefix('leyden ') for path, _ in verbs)}. Each has --help."),
        ".SH OPTIONS",
        *_options(root),
        ".SH VERBS",
        *(line for path, command in verbs for line in _section(path, command)),
        ".SH EXIT STATUS",
        *(line for code, meaning in _STATUS.items() for line in (".TP", f"\\fB{code}\\fR", _text(meaning))),
    ]
    return "\n".join(lines) + "\n"


def _verbs(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The commands that do something, with their full names."""
    for name, inner in getattr(command, "commands", {}).items():
        if getattr(inner, "commands", None):
            yield from _verbs(inner, f"{path} {name}")
        elif not inner.hidden:
            yield f"{path} {name}", inner


def _section(path: str, command: Any) -> Iterator[str]:
    context = command.make_context(path, [], resilient_parsing=True)
    named = [piece for one in command.params for piece in one.get_usage_pieces(context)]
    yield f'.SS "{_text(" ".join([path, *named]))}"'
    yield _text(command.help or "")
    yield from _options(command)


def _options(command: Any) -> Iterator[str]:
    """Arguments and options, each with what ``--help`` says of it."""
    context = command.make_context("", [], resilient_parsing=True)
    for one in command.params:
        record = None if one.hidden else one.get_help_record(context)
        if record is not None:
            names, said = record
            yield from (".TP", f"\\fB{_text(names)}\\fR", _text(said) or "\\&")


def _first(text: str | None) -> str:
    """The first sentence, without its full stop."""
    return " ".join((text or "").split()).removesuffix(".")


def _text(text: str) -> str:
    """Text that roff prints as it is: hyphens are those of a command line, and no line begins with a command."""
    escaped = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(man_page(), encoding="utf-8")
    else:
        print(man_page(), end="")
