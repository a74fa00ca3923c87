"""The manual page has every verb and every option, and is clean roff; completion scripts are printed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from leyden.cli.app import app
from leyden.cli.man_page import man_page


def commands(command: Any, path: str = "leyden") -> list[tuple[str, Any]]:
    inner = getattr(command, "commands", {})
    found = [one for name, other in inner.items() for one in commands(other, f"{path} {name}")]
    return found or [(path, command)]


def test_every_verb_and_option_is_on_the_page() -> None:
    sections: dict[str, str] = {}
    for part in man_page().replace("\\-", "-").split('\n.SS "')[1:]:
        title, _, body = part.partition('"\n')
        sections[title] = body
    every = commands(get_command(app))
    assert len(every) == len(sections) > 30
    for (path, command), (title, body) in zip(every, sections.items(), strict=True):
        assert title == path or title.startswith(f"{path} "), path
        for parameter in command.params:
            if not parameter.hidden and parameter.param_type_name == "option" and parameter.name != "help":
                assert all(name in body for name in parameter.opts), (path, parameter.opts)


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_page_is_clean_roff(tmp_path: Path) -> None:
    (tmp_path / "leyden.1").write_text(man_page())
    command = ["groff", "-man", "-ww", "-z", "-Tutf8", str(tmp_path / "leyden.1")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_lines_that_begin_with_a_command_character_are_text() -> None:
    from leyden.cli.man_page import _text

    assert _text(".hidden --all \\n") == "\\&.hidden \\-\\-all \\en"
    assert _text("'quoted'") == "\\&'quoted'"


def complete(shell: str, words: str, at: int) -> list[str]:
    """What the installed command answers to a shell that asks how ``words`` go on."""
    asked = {"_LEYDEN_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    command = [str(Path(sys.executable).with_name("leyden"))]
    finished = subprocess.run(
        command, env={**os.environ, **asked}, capture_output=True, text=True, timeout=60, check=True
    )
    return finished.stdout.split()


def test_a_shell_completes_verbs_and_values() -> None:
    assert complete("bash", "leyden conv", 1) == ["convert"]
    assert "gguf" in complete("bash", "leyden convert a b --layout ", 5)
