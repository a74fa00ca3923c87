"""The reference of the Python interface: public names are documented, and the links of ``make docs`` work."""

import importlib
import inspect
import re
import shlex
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
    plan = subprocess.run(
        ["make", "-n", "docs", f"DOCS={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    (line,) = (line for line in plan.splitlines() if "docs/reference.py" in line)
    arguments = shlex.split(line)[1:]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {page.stem for page in (tmp_path / "leyden").glob("*.html")} == set(ROOMS)
    for room, name in (("ops", "lightning_attention"), ("train", "train_step")):  # the second resolves lazily
        assert f'id="{name}"' in (tmp_path / "leyden" / f"{room}.html").read_text(encoding="utf-8")
    for page in pages:
        for target in re.findall(r'href="([^"#:]+\.html)', page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(tmp_path)} links to {target}"
