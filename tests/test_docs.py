"""The reference of the Python interface: public names are documented, and the links of ``make docs`` work."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.parent.name for path in (ROOT / "src" / "leyden").glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_of_a_room_is_documented(room: str) -> None:
    module = importlib.import_module(f"leyden.{room}")
    assert module.__doc__, f"leyden.{room} does not say what it is"
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"leyden.{room}.{name} has no docstring"


@pytest.mark.slow
def test_the_reference_is_written_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    command = re.search(r"^docs:.*\n\t\$\(PY\) (-m pdoc .*)$", recipe, flags=re.MULTILINE)
    assert command is not None
    arguments = command[1].replace("build/docs", str(tmp_path)).replace("'", "").split()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert (tmp_path / "leyden" / "ops" / "lightning_attention.html") in pages
    for page in pages:
        for target in re.findall(r'href="([^"#:]+\.html)', page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(tmp_path)} links to {target}"
