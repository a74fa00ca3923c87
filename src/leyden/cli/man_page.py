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
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    named = " ".join(one.make_metavar(_context(command)) for one in arguments)
    yield f'.SS "{_text(f"{path} {named}".strip())}"'
    yield _text(" ".join((command.help or "").split()))
    for one in arguments:
        if getattr(one, "help", None):
            yield from (".TP", f"\\fI{_text(one.make_metavar(_context(command)))}\\fR", _text(one.help))
    yield from _options(command)


def _options(command: Any) -> Iterator[str]:
    for one in command.params:
        if one.param_type_name == "option" and not one.hidden:
            names = ", ".join(f"\\fB{_text(name)}\\fR" for name in (*one.opts, *one.secondary_opts))
            value = "" if one.is_flag else f" \\fI{_text(one.make_metavar(_context(command)))}\\fR"
            yield from (".TP", names + value, _text(_with_default(one)))


def _with_default(option: Any) -> str:
    said = " ".join((option.help or "").split())
    shown = option.show_default and option.default not in (None, (), "") and not callable(option.default)
    return f"{said} [default: {option.default}]" if shown and not option.is_flag else said


def _context(command: Any) -> Any:
    from click import Context

    return Context(command)


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
