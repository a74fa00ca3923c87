"""What is installed, built and listed: extras, the changelog, licenses, and a source archive with all it needs."""

import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import leyden

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert versions[0] == leyden.__version__
    assert len(set(versions)) == len(versions)


def test_the_licenses_are_those_of_what_is_pinned() -> None:
    licenses = script(ROOT / "docs" / "licenses.py")
    pinned = re.findall(r"^([\w.-]+)==(\S+?)(?:;.*)?$", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    rows = re.findall(r"^\| ([\w.-]+) \| (\S+) \| (.+) \|$", licenses.PAGE.read_text(), flags=re.MULTILINE)
    assert {name: version for name, version, _ in rows if name != "package"} == dict(pinned)
    assert licenses.PAGE.read_text() == licenses.page(), "run: make licenses"
    assert not [name for name, _, license in rows if "not said" in license]


def test_every_extra_is_named_where_its_package_is_missing(project: dict[str, Any]) -> None:
    """By ``pip install``, with the extra or with its packages, in an error of the room that asks for it."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r"pip install ['\"\\]*(?:leyden\[)?([\w-]+)", source.replace("huggingface_hub", "hub")))
    extras = set(project["optional-dependencies"]) - {"dev"}
    dynamic = {"tensorboard", "wandb", "trafilatura"}  # messages with a place for the name
    assert "pip install {name}; or leave it out" in source and "pip install 'leyden[{name}]'" in source
    assert extras - dynamic <= named


def test_every_extra_is_told_of_in_the_readme(project: dict[str, Any]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = readme.partition("## Installation")[2].partition("\n## ")[0]
    assert not [extra for extra in project["optional-dependencies"] if f"`{extra}`" not in told]


def test_a_source_archive_holds_every_file_of_the_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (archive,) = tmp_path.iterdir()
    assert archive.name == f"leyden-{leyden.__version__}.tar.gz"
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "src" / "leyden").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".so", ".pyc")
    }
    needed = {"LICENSE", "README.md", "hatch_build.py", "pyproject.toml"}
    assert package | needed <= held
    assert not [name for name in held if name.startswith((".venv", ".git/", "runs"))]
